"""Names of images and classes in messages."""

from collections.abc import Sequence

NAMED = 20
"""Largest number of images or classes that a message names."""


def name_some(names: Sequence[str]) -> str:
    """List names in one line: the first ones, and how many more there are."""
    return "; ".join(names[:NAMED]) + (f"; and {len(names) - NAMED} more" if len(names) > NAMED else "")
