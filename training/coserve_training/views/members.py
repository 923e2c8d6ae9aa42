"""Each member's own view of an image: cropped, flipped and augmented, as 8-bit pixels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from coserve_images.decode import OpenedImage
from coserve_training.config import TrainConfig
from coserve_training.data import Pixels, Square, make_square
from coserve_training.views.crop import crop_photograph, flip, shift
from coserve_training.views.policies import make_policy


class MemberViews:
    """Draws members' views of an image, in the processes that load images.

    A view depends only on the recipe's seed, the epoch, the member and the image. So it is the same with any
    number of workers, in a resumed run, and where each member has a process of its own.

    Args:
        config: the recipe.
        members: indices of the members to draw views for.
        mean: mean of each channel of the training images, of pixels in [0, 1].
    """

    def __init__(self, config: TrainConfig, members: Sequence[int], mean: Sequence[float]) -> None:
        self.config = config
        self.members = members
        red, green, blue = (round(255 * channel) for channel in mean)
        self.policy = make_policy(config, (red, green, blue))

    def draw(self, image: OpenedImage, square: Square, epoch: int, index: int, repeat: int) -> Pixels:
        """Return views `[members, size, size, 3]` at the epoch's resolution; for arguments see `Views`."""
        size = self.config.size_at(epoch)
        seed = self.config.seed
        drawers = [self.config.drawer_of(member) for member in self.members]
        randoms = [np.random.default_rng([seed, epoch, drawer, index, repeat]) for drawer in drawers]
        resampling = Image.Resampling[self.config.interpolation.upper()]
        if self.config.crop == "resized":
            crops = crop_photograph(image, size, self.config.crop_area, resampling, randoms)
        else:
            whole = make_square(image, square)
            if whole.width != size:
                whole = whole.resize((size, size), resampling)
            padded = self.config.crop == "padded"
            reflect = self.config.padding == "reflect"
            crops = [shift(whole, random, reflect) if padded else whole for random in randoms]
        return np.stack([self._finish(crop, random) for crop, random in zip(crops, randoms, strict=True)])

    def _finish(self, view: Image.Image, random: np.random.Generator) -> Pixels:
        if self.config.flip:
            view = flip(view, random)
        if self.policy is not None:
            view = self.policy(view, random)
        return np.asarray(view)
