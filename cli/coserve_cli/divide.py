"""`coserve divide`."""


def divide() -> None:
    """To be written."""
