from dataclasses import replace

import pytest
import torch
from torch import Tensor

from coserve_training.config import TrainConfig
from coserve_training.views.erasing import cut_out, erase, erase_parts


def holes(erased: Tensor) -> Tensor:
    """Return the holes `[M, H, W]` of the images that have one, after checking that they are rectangles."""
    hole = erased[:, 0] == 0
    assert torch.equal(hole, erased[:, 1] == 0)
    found = hole[hole.any((1, 2))]
    assert torch.equal(found.any(2).sum(1) * found.any(1).sum(1), found.sum((1, 2)))
    return found


@pytest.mark.parametrize(("area", "ratio"), [
    ((0.125, 0.2), (0.99, 1.0)), ((0.0625, 0.1), (0.99, 1.0)), ((0.125, 0.25), (0.9, 1.1)),
    ((0.05, 0.12), (0.5, 1.5)), ((0.02, 0.33), (0.3, 3.3)),
])  # fmt: skip
def test_erasing_takes_rectangles_of_the_recipes_shape_out_of_its_share_of_images(
    area: tuple[float, float], ratio: tuple[float, float]
) -> None:
    torch.manual_seed(4)
    found = holes(erase(torch.ones(1000, 2, 128, 128), 0.5, area, ratio))
    assert len(found) / 1000 == pytest.approx(0.5, abs=0.05)
    areas = found.float().mean((1, 2))
    # Sides are whole pixels.
    assert areas.min().item() == pytest.approx(area[0], rel=0.1)
    assert areas.max().item() == pytest.approx(area[1], rel=0.1)
    assert areas.mean().item() == pytest.approx(sum(area) / 2, rel=0.07)
    shapes = found.any(2).sum(1) / found.any(1).sum(1)
    assert shapes.log().mean().item() == pytest.approx(torch.tensor(ratio).log().mean().item(), abs=0.05)
    assert shapes.min().item() == pytest.approx(ratio[0], rel=0.1)
    assert shapes.max().item() == pytest.approx(ratio[1], rel=0.1)


def test_rectangles_lie_anywhere() -> None:
    torch.manual_seed(5)
    found = holes(erase(torch.ones(2000, 2, 8, 12), 0.99, (0.125, 0.125), (0.75, 0.75)))
    assert found.any(2).sum(1).unique().tolist() == [3]
    assert found.any(1).sum(1).unique().tolist() == [4]
    for first, places in ((found.any(2).int().argmax(1), 6), (found.any(1).int().argmax(1), 9)):
        shares = torch.bincount(first, minlength=places) / len(found)
        assert shares.tolist() == pytest.approx([1 / places] * places, abs=0.03)


def test_nothing_is_erased_where_no_rectangle_fits() -> None:
    assert (erase(torch.ones(50, 1, 8, 8), 0.99, (1, 1), (1, 1)) == 1).all()


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


def test_the_recipe_erases_and_cuts_out(config: TrainConfig) -> None:
    torch.manual_seed(6)
    images = torch.ones(400, 3, 16, 16)
    assert torch.equal(erase_parts(images, config), images)
    found = holes(
        erase_parts(images, replace(config, erasing=0.25, erasing_area=(0.25, 0.25), erasing_ratio=(1, 1)))
    )
    assert len(found) / 400 == pytest.approx(0.25, abs=0.08)
    assert found.sum((1, 2)).unique().tolist() == [64]
    # Images of 16 pixels have half the side of the recipe's 32.
    cut = erase_parts(images, replace(config, cutout=16)) == 0
    assert cut[:, 0].sum((1, 2)).max() == 8 * 8


def test_rectangles_as_long_as_the_image_do_not_fit() -> None:
    for shape, ratio in (((8, 16), 0.25), ((16, 8), 4.0)):
        images = torch.ones(50, 1, *shape)
        assert torch.equal(erase(images, 1.0, (0.5, 0.5), (ratio, ratio)), images)
    torch.manual_seed(6)
    hole = erase(torch.ones(400, 1, 8, 8), 1.0, (0.86, 1.0), (1.0, 1.0))[:, 0] == 0
    sizes = hole.sum((1, 2))
    assert set(sizes.tolist()) == {0, 49}, "no attempt of some images fits"
