"""`coserve evaluate`."""


def evaluate() -> None:
    """To be written."""
