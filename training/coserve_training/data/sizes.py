"""Compare the size of photographs with the size that they are trained at."""

from contextlib import suppress

import numpy as np

from coserve_training.data.lazy import LazyImages, open_image

SAMPLE = 15
"""Images whose headers are read."""
MUCH = 4
"""How many times as long as needed the shorter side is if a network sees few of the details."""


def describe_reduction(images: LazyImages) -> list[str]:
    """Return a line if most of the images are far larger than they are trained at, otherwise none."""
    sizes = []
    for index in np.linspace(0, len(images) - 1, min(SAMPLE, len(images)), dtype=np.int64):
        # Images that cannot be opened are reported when they are decoded.
        with suppress(Exception), open_image(images.sources[index]) as image:
            sizes.append(image.stored_size)
    if not sizes:
        return []
    sizes.sort(key=min)
    width, height = sizes[len(sizes) // 2]
    if min(width, height) < MUCH * images.square.resize_size:
        return []
    return [
        f"photographs of about {width}x{height} pixels are reduced to {images.size}x{images.size}; "
        "--image-size sets more, at more cost"
    ]
