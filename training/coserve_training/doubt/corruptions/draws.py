"""Random numbers for corruptions."""

import hashlib
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[np.uint8]


class Draws:
    """Random numbers that depend on a seed, the corruption's name and each image's pixels, and nothing else.

    So an image is corrupted alike in every batch and sample. The severity does not enter: it changes the
    strength of the same noise.

    Args:
        images: the images `[N, H, W, 3]`.
        name: name of the corruption.
        seed: any non-negative number.
    """

    def __init__(self, images: Pixels, name: str, seed: int) -> None:
        key = zlib.crc32(name.encode())
        digests = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images]
        self._generators = [
            np.random.default_rng([seed, key, int.from_bytes(digest, "little")]) for digest in digests
        ]

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers `[N, *shape]`."""
        return self._draw(lambda generator: generator.standard_normal(shape, np.float32))

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniform numbers in [0, 1), `[N, *shape]`."""
        return self._draw(lambda generator: generator.random(shape, np.float32))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw integers from `low` to `high` - 1, `[N, *shape]`."""
        return self._draw(lambda generator: generator.integers(low, high, shape))

    def poisson(self, rates: Tensor) -> Tensor:
        """Draw Poisson numbers with the rates `[N, ...]`."""
        pairs = zip(self._generators, rates.double().numpy(), strict=True)
        return torch.from_numpy(np.stack([generator.poisson(rate) for generator, rate in pairs])).float()

    def _draw(self, draw: Callable[[np.random.Generator], npt.NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.stack([draw(generator) for generator in self._generators]))
