"""The models served now."""
