"""Dividing image classifiers into ensembles and training their members together (arXiv 2011.14660)."""
