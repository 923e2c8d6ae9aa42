"""Labelled images from folders, zips and the official CIFAR files, as uint8 arrays."""

from coserve_training.data.dataset import Dataset, Progress, Split, load_dataset

__all__ = ["Dataset", "Progress", "Split", "load_dataset"]
