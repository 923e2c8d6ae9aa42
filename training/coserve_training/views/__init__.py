"""Views: what each member sees of the same batch of images.

crop.py      crop and flip
policies.py  the recipe's policy
autoaugment.py  AutoAugment
randaugment.py  RandAugment
operations.py   what both are made of
erasing.py   random erasing and cutout
mixup.py     blends of two images, with the same pairs for all members
"""

import torch
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.views.crop import make_crop
from coserve_training.views.erasing import cut_out, erase
from coserve_training.views.policies import apply_policy, make_policy


class Views:
    """Draws one member's view of a batch. Each call draws anew from torch's global generator.

    Not an `nn.Module`: kornia's operations have parameters, which must not count as the members'.
    """

    def __init__(self, config: TrainConfig, size: int, device: torch.device) -> None:
        """Prepare views of `size` × `size` pixels. Cutout's square shrinks in proportion to the image."""
        self.crop = make_crop(config, size, device)
        self.policy = make_policy(config, (128, 128, 128))
        self.config = config
        self.cutout = round(config.cutout * size / config.image_size)

    @torch.no_grad()
    def augment(self, pixels: Tensor) -> Tensor:
        """Crop, flip and apply the policy: `[N, 3, H, W]` in [0, 1] to `[N, 3, size, size]` in [0, 1]."""
        view = pixels if self.crop is None else self.crop(pixels)
        return view if self.policy is None else apply_policy(self.policy, view)

    @torch.no_grad()
    def erase(self, images: Tensor) -> Tensor:
        """Erase and cut out parts of normalised images `[N, 3, H, W]`, leaving 0, the mean colour."""
        config = self.config
        if config.erasing:
            images = erase(images, config.erasing, config.erasing_area, config.erasing_ratio)
        return cut_out(images, self.cutout) if self.cutout else images
