"""Ensembles, read from a Triton model repository."""
