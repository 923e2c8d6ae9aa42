"""Labelled images from folders, zips, ImageNet's layout and the official CIFAR and SVHN files.

dataset.py   reads a data set from any of these: `load_dataset`
unlabelled.py  reads the images alone: `load_unlabelled`
files.py     image files in folders and zips
zips.py      the entries of zips
passed_over.py  counts of the files that are not taken
identity.py  images recognised by their content
membership.py  which images are trained on, and which are held out
naming.py    names in messages
imagenet.py  labels of ImageNet's validation images
cifar.py     the official CIFAR files
svhn.py      the official SVHN files
matlab.py    MATLAB files
download.py  public data sets by name
check.py     damaged files, without decoding all of them
decode.py    from an opened image to RGB arrays
lazy.py      images that are decoded, or augmented, when they are read
split.py     the images and classes of a split
workers.py   worker processes
limits.py    the cores and the memory to use
order.py     the order of the images in each epoch
batches.py   batches as tensors
"""

from coserve_training.data.batches import Batches, to_pixels
from coserve_training.data.dataset import load_dataset
from coserve_training.data.decode import Pixels, Square, make_square
from coserve_training.data.identity import Identities, Known, identify
from coserve_training.data.lazy import LazyImages, Views
from coserve_training.data.limits import usable_cores
from coserve_training.data.membership import HOLD_OUT, Membership
from coserve_training.data.naming import name_some
from coserve_training.data.split import Dataset, Progress, Split, space_evenly
from coserve_training.data.unlabelled import Unlabelled, load_unlabelled
from coserve_training.data.workers import index_batches

__all__ = [
    "HOLD_OUT",
    "Batches",
    "Dataset",
    "Identities",
    "Known",
    "LazyImages",
    "Membership",
    "Progress",
    "Pixels",
    "Split",
    "Square",
    "Unlabelled",
    "Views",
    "identify",
    "index_batches",
    "load_dataset",
    "load_unlabelled",
    "make_square",
    "name_some",
    "space_evenly",
    "to_pixels",
    "usable_cores",
]
