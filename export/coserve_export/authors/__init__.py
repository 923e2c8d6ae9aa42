"""Checkpoints of the paper's authors (arXiv 2011.14660), read and exported.

export.py        a checkpoint to a model repository: `export_published`
download.py      a link to a file
archive.py       the checkpoint and its settings in a zip file, a folder or a file of its own
checkpoint.py    loading weights, and nothing but weights
recognise.py     which network, split and data set it is
weights.py       filling our networks with the authors' weights
naming/          the authors' names of each family's layers
datasets.py      labels and preprocessing by data set
published.py     the list of published checkpoints, from published.csv
"""
