"""Engines, which run the members of an ensemble."""
