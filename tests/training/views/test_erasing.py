from dataclasses import replace

import pytest
import torch

from coserve_training.config import TrainConfig
from coserve_training.views.erasing import cut_out, make_erasing


def test_erasing_takes_a_rectangle_out_of_its_share_of_images(config: TrainConfig) -> None:
    torch.manual_seed(4)
    erasing = make_erasing(replace(config, erasing=0.5))
    assert erasing is not None
    hole = erasing(torch.ones(4000, 1, 64, 64))[:, 0] == 0
    erased = hole[hole.any((1, 2))]
    assert len(erased) / 4000 == pytest.approx(0.5, abs=0.03)
    areas = erased.float().mean((1, 2))
    heights = erased.any(2).sum(1)
    widths = erased.any(1).sum(1)
    assert torch.equal(heights * widths, erased.sum((1, 2)))
    assert 0.015 < areas.min() < 0.03
    assert 0.31 < areas.max() < 0.35
    # Small rectangles fit into the image whatever their shape.
    ratios = (widths / heights)[areas < 0.1]
    assert 0.25 < ratios.min() < 0.35
    assert 2.8 < ratios.max() < 4


def test_cutout_zeroes_one_square_per_image_clipped_at_the_border() -> None:
    torch.manual_seed(5)
    cut = cut_out(torch.ones(500, 2, 20, 24), 8) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    sizes = cut[:, 0].sum((1, 2))
    assert sizes.max() == 64
    assert 16 <= sizes.min() < 64
    rows = cut[:, 0].any(2).sum(1)
    columns = cut[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, sizes)
