"""Ensembles as a Triton model repository describes them."""
