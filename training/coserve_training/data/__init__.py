"""Labelled images from folders, zips and the official CIFAR files, as uint8 arrays."""

from coserve_training.data.dataset import Dataset, Split, load_dataset

__all__ = ["Dataset", "Split", "load_dataset"]
