"""Labelled images from folders, zips, ImageNet's layout and the official CIFAR and SVHN files."""

from coserve_training.data.batches import Batches, to_pixels
from coserve_training.data.dataset import load_dataset, name_some
from coserve_training.data.lazy import LazyImages, RandomCrops
from coserve_training.data.split import HOLD_OUT, Dataset, Progress, Split
from coserve_training.data.workers import in_order, usable_cores

__all__ = [
    "HOLD_OUT",
    "Batches",
    "Dataset",
    "LazyImages",
    "Progress",
    "RandomCrops",
    "Split",
    "in_order",
    "load_dataset",
    "name_some",
    "to_pixels",
    "usable_cores",
]
