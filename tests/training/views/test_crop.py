from dataclasses import replace

import torch
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.views.crop import make_crop

CPU = torch.device("cpu")


def test_padded_crops_shift_images_by_up_to_an_eighth(config: TrainConfig) -> None:
    torch.manual_seed(1)
    crop = make_crop(replace(config, flip=False), 32, CPU)
    assert crop is not None
    dot = torch.zeros(500, 1, 32, 32)
    dot[..., 10, 20] = 1
    position = crop(dot)[:, 0].flatten(1).argmax(1)
    rows = position // 32
    columns = position % 32
    assert set(rows.tolist()) == set(range(10 - 4, 10 + 5))
    assert set(columns.tolist()) == set(range(20 - 4, 20 + 5))


def test_half_of_the_images_are_flipped(config: TrainConfig, pixels: Tensor) -> None:
    torch.manual_seed(2)
    flip = make_crop(replace(config, crop="none"), 32, CPU)
    assert flip is not None
    images = pixels[:1].expand(600, -1, -1, -1)
    flipped = flip(images)
    mirrored = torch.tensor([torch.equal(image, pixels[0].flip(-1)) for image in flipped])
    kept = torch.tensor([torch.equal(image, pixels[0]) for image in flipped])
    assert (mirrored ^ kept).all()
    assert 0.42 < mirrored.float().mean() < 0.58


def test_photographs_cropped_while_decoded_are_only_flipped(config: TrainConfig) -> None:
    assert make_crop(replace(config, crop="resized", flip=False), 32, CPU) is None
