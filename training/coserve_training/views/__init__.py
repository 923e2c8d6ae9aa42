"""Views: what each member sees of the same batch of images.

members.py      draws views where images are loaded, from the modules up to operations.py
crop.py         crops and flips
policies.py     the recipe's policy
autoaugment.py  AutoAugment
randaugment.py  RandAugment
operations.py   the operations of both
erasing.py      random erasing and cutout of normalised batches, in the training step
mixup.py        blends of two images there, with the same pairs for all members
"""

from coserve_training.views.erasing import erase_parts
from coserve_training.views.members import MemberViews
from coserve_training.views.mixup import mix_up

__all__ = ["MemberViews", "erase_parts", "mix_up"]
