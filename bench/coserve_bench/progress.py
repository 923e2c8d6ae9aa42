"""Reports the progress of a measurement."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a name for the current work, the steps done, and the total steps."""
