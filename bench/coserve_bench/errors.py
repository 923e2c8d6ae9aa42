"""Errors of measurements."""


class BenchError(Exception):
    """A measurement cannot be made; the text says why."""
