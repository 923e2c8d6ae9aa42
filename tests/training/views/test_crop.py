import io

import numpy as np
import pytest
from PIL import Image

from coserve_images.decode import OpenedImage
from coserve_training.views.crop import crop_photograph, draw_box, flip, shift
from tests.training.data.photographs import photograph

AREA = (0.1, 1.0)
CUBIC = Image.Resampling.BICUBIC


def generators(count: int, seed: int = 5) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, index]) for index in range(count)]


def stack(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def test_images_are_shifted_by_up_to_an_eighth_and_filled_with_black() -> None:
    random = np.random.default_rng(1)
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[10, 20] = 100
    seen = set()
    for _ in range(1000):
        shifted = np.asarray(shift(Image.fromarray(pixels), random))
        ((row, column),) = np.argwhere(shifted[..., 0] == 100).tolist()
        seen.add((row - 10, column - 20))
        assert (shifted == 0).sum() == 3 * (32 * 32 - (32 - abs(row - 10)) * (32 - abs(column - 20)))
    assert seen == {(down, right) for down in range(-4, 5) for right in range(-4, 5)}


def test_half_of_the_images_are_flipped() -> None:
    random = np.random.default_rng(2)
    image = photograph(0, 16, 16)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    views = [flip(image, random) for _ in range(600)]
    assert all(view in (image, mirrored) for view in views)
    assert 0.42 < sum(view == mirrored for view in views) / 600 < 0.58


@pytest.mark.parametrize("share", [(0.08, 1.0), (0.1, 1.0)])
def test_crops_have_the_recipes_area_and_the_proportions_of_inception(share: tuple[float, float]) -> None:
    random = np.random.default_rng(0)
    boxes = np.array([draw_box(random, 640, 480, share) for _ in range(4000)])
    widths = boxes[:, 2] - boxes[:, 0]
    heights = boxes[:, 3] - boxes[:, 1]
    areas = widths * heights / (640 * 480)
    ratios = widths / heights
    assert (boxes >= 0).all()
    assert (boxes <= (640, 480, 640, 480)).all()
    assert areas.min() == pytest.approx(share[0], rel=0.1)
    assert 0.9 < areas.max() <= 1
    assert 0.74 < ratios.min() < 0.76
    assert 1.31 < ratios.max() < 1.35
    # Left is as likely as right and, in crops small enough for both, wide as likely as tall.
    assert abs((boxes[:, 0] + boxes[:, 2]).mean() / 2 - 320) < 6
    assert abs(np.log(ratios[areas < 0.5]).mean()) < 0.02


@pytest.mark.parametrize(("shape", "box"), [((1, 1), (0, 0, 1, 1)), ((1000, 10), (493, 0, 506, 10))])
def test_a_shape_that_no_crop_fits_gives_its_middle(
    shape: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    random = np.random.default_rng(0)
    assert [draw_box(random, *shape, AREA) for _ in range(20)] == [box] * 20


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("side", [120, 1600])
def test_a_reduced_jpeg_gives_the_crops_of_the_whole(side: int, orientation: int) -> None:
    """Large photographs are decoded at a fraction of their size, and cropped upright."""
    image = photograph(1, side, side * 3 // 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose({
        1: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270,
    }[orientation]) if orientation > 1 else image  # fmt: skip
    file = io.BytesIO()
    stored.save(file, "JPEG", quality=95, exif=exif)
    with Image.open(file) as opened:
        crops = crop_photograph(OpenedImage(opened), 64, AREA, CUBIC, generators(4))
        reduced = opened.size != stored.size
    assert reduced == (side == 1600)
    boxes = [draw_box(random, *image.size, AREA) for random in generators(4)]
    whole = [image.resize((64, 64), CUBIC, box=box) for box in boxes]
    difference = np.abs(stack(crops) - stack(whole))
    assert difference.mean() < 2


def test_a_crop_is_never_enlarged_for_want_of_decoded_pixels() -> None:
    file = io.BytesIO()
    photograph(2, 2000, 1500).save(file, "JPEG")
    for seed in range(20):
        with Image.open(file) as opened:
            crop_photograph(OpenedImage(opened), 224, AREA, CUBIC, generators(2, seed))
            scale = opened.width / 2000
        boxes = np.array([draw_box(random, 2000, 1500, AREA) for random in generators(2, seed)])
        assert ((boxes[:, 2:] - boxes[:, :2]) * scale >= 224 - 1).all()


@pytest.mark.parametrize("resampling", [Image.Resampling.BILINEAR, CUBIC])
def test_crops_are_resized_as_the_recipe_says(resampling: Image.Resampling) -> None:
    image = photograph(1, 40, 30)
    (crop,) = crop_photograph(OpenedImage(image), 64, AREA, resampling, generators(1))
    box = draw_box(*generators(1), 40, 30, AREA)
    assert (stack([crop]) == stack([image.resize((64, 64), resampling, box=box)])).all()


def boxes(width: int, height: int, share: tuple[float, float]) -> set[tuple[int, int, int, int]]:
    """Return a few hundred boxes."""
    random = np.random.default_rng(0)
    return {draw_box(random, width, height, share) for _ in range(300)}


def test_boxes_may_span_the_image_in_one_direction_or_be_a_pixel() -> None:
    sizes = {(right - left, bottom - top) for left, top, right, bottom in boxes(8, 8, (0.8, 1))}
    assert {(8, 7), (7, 8), (8, 8)} <= sizes
    assert max(max(size) for size in sizes) == 8
    assert boxes(2, 2, (0.2, 0.25)) == {(0, 0, 1, 1), (0, 1, 1, 2), (1, 0, 2, 1), (1, 1, 2, 2)}
    assert boxes(1, 1, (0.25, 0.26)) == {(0, 0, 1, 1)}


def test_images_that_are_too_long_are_cut_in_the_middle() -> None:
    assert boxes(4, 100, (0.9, 1)) == {(0, 47, 4, 52)}
    assert boxes(100, 4, (0.9, 1)) == {(47, 0, 52, 4)}
