"""Labelled images from folders, zips, ImageNet's layout and the official CIFAR and SVHN files."""

from coserve_training.data.batches import Batches
from coserve_training.data.dataset import describe_corrupt, load_dataset
from coserve_training.data.lazy import LazyImages, RandomCrops
from coserve_training.data.split import Dataset, Progress, Split
from coserve_training.data.workers import in_order

__all__ = [
    "Batches",
    "Dataset",
    "LazyImages",
    "Progress",
    "RandomCrops",
    "Split",
    "describe_corrupt",
    "in_order",
    "load_dataset",
]
