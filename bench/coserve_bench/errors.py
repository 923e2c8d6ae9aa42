"""What can go wrong in measuring."""


class BenchError(Exception):
    """Nothing can be measured; the text says why."""
