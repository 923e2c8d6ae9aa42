"""`coserve classify`."""


def classify() -> None:
    """To be written."""
