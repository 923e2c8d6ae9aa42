"""Corrupted copies: the same each time, stronger with severity, and like what their names say."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch

from coserve_training.doubt.corruptions import CORRUPTIONS, SEVERITIES, corrupt, digital, geometry
from coserve_training.doubt.corruptions.batch import Batch
from coserve_training.doubt.corruptions.draws import Draws
from coserve_training.errors import ConfigError, DataError

Pixels = npt.NDArray[np.uint8]
NOT_BY_DISTANCE = {"glass_blur", "frost", "elastic_transform"}
"""Their severities change several figures in opposite directions, as the authors' do."""


def photographs(height: int = 32, width: int = 32, count: int = 6) -> Pixels:
    """Return smooth shapes with edges and some texture."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    images = []
    for _ in range(count):
        image = random.uniform(60, 120, 3) + 60 * np.sin(x / width * random.uniform(3, 9))[..., None]
        centre = random.uniform(0.3, 0.7, 2) * (height, width)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (min(height, width) / 4) ** 2
        image[inside] = random.uniform(0, 220, 3)
        images.append(image + random.normal(0, 6, image.shape))
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


def distance(some: Pixels, others: Pixels) -> float:
    return float(np.abs(some.astype(float) - others).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_every_batch(name: str) -> None:
    images = photographs()
    before = images.copy()
    corrupted = corrupt(images, name, 3)
    assert (corrupt(images[[4, 1]], name, 3) == corrupted[[4, 1]]).all()
    assert (images == before).all()
    assert corrupted.dtype == np.uint8
    assert (corrupted != images).any((1, 2, 3)).all()


def test_reversed_arrays_are_corrupted_as_their_copies_are() -> None:
    images = photographs(count=2)
    for view in (images[..., ::-1], images[:, ::-1], images[:, :, ::-1], images[::-1]):
        assert (corrupt(view, "gaussian_noise", 3) == corrupt(view.copy(), "gaussian_noise", 3)).all()


def test_each_image_has_noise_of_its_own() -> None:
    images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (128, 129)])
    noise = corrupt(images, "gaussian_noise", 5).astype(float) - images
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"defocus_blur", "zoom_blur"}))
def test_a_seed_draws_other_copies_where_chance_plays_a_part(name: str) -> None:
    images = photographs(count=2)
    certain = name in ("brightness", "contrast", "pixelate", "jpeg_compression")
    assert (corrupt(images, name, 5, seed=1) == corrupt(images, name, 5, seed=0)).all() == certain


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - NOT_BY_DISTANCE))
def test_severity_grows_the_distance_to_the_original(name: str) -> None:
    images = photographs()
    distances = [distance(corrupt(images, name, severity), images) for severity in SEVERITIES]
    assert all(later > 0.95 * earlier for earlier, later in pairwise(distances))
    assert distances[4] > 1.15 * distances[0] > 0


@pytest.mark.parametrize("name", ["frost", "glass_blur"])
def test_less_of_the_original_remains_at_the_highest_severity(name: str) -> None:
    images = photographs()

    def unlike(severity: int) -> float:
        copies = corrupt(images, name, severity)
        pairs = zip(images, copies, strict=True)
        return float(np.mean([1 - np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]))

    assert unlike(5) > 1.3 * unlike(1)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (40, 33)])
def test_other_sizes_keep_their_shape_and_their_subject(name: str, shape: tuple[int, int]) -> None:
    images = photographs(*shape, count=2)
    corrupted = corrupt(images, name, 2)
    assert corrupted.shape == images.shape
    pairs = zip(images, corrupted, strict=True)
    assert min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs) > 0.5


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "elastic_transform"])
def test_lengths_grow_with_the_image(name: str) -> None:
    small = photographs(count=3)
    large = small.repeat(4, 1).repeat(4, 2)
    ratio = distance(corrupt(large, name, 5), large) / distance(corrupt(small, name, 5), small)
    assert 0.6 < ratio < 1.5


def test_grey_images_stay_grey_but_for_noise_and_frost() -> None:
    grey = photographs(count=2).mean(-1, keepdims=True).round().astype(np.uint8).repeat(3, 3)
    coloured = {name for name in CORRUPTIONS if (np.ptp(corrupt(grey, name, 3).astype(int), -1) > 1).any()}
    assert coloured == {"gaussian_noise", "shot_noise", "impulse_noise", "frost"}


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_black_and_white_images_are_no_exception(name: str, level: int) -> None:
    images = np.full((1, 32, 32, 3), level, np.uint8)
    corrupted = corrupt(images, name, 5)
    if name.endswith("blur") or name in ("contrast", "elastic_transform", "pixelate", "jpeg_compression"):
        assert np.abs(corrupted.astype(int) - level).max() <= 1
    if name == "brightness":
        assert (corrupted == (76 if level == 0 else 255)).all()


def test_strengths_of_noise() -> None:
    grey = np.full((1, 160, 160, 3), 128, np.uint8)
    normal = corrupt(grey, "gaussian_noise", 5).astype(float)
    assert normal.std() == pytest.approx(0.10 * 255, rel=0.02)
    shots = corrupt(grey, "shot_noise", 5).astype(float)
    assert shots.std() == pytest.approx((128 / 255 / 50) ** 0.5 * 255, rel=0.05)  # some are cut off at white
    impulses = corrupt(grey, "impulse_noise", 5)
    assert (impulses == 0).mean() == pytest.approx(0.035, rel=0.1)
    assert (impulses == 255).mean() == pytest.approx(0.035, rel=0.1)


def test_a_point_is_spread_as_the_blur_says() -> None:
    point = np.zeros((1, 33, 33, 3), np.uint8)
    point[0, 16, 16] = 255
    disk = corrupt(point, "defocus_blur", 5)[0, ..., 0].astype(int)
    assert (disk[15:18, 15:18] > 20).all()
    assert disk.sum() - disk[14:19, 14:19].sum() == 0
    aside = np.roll(point, (8, 8), (1, 2))
    rows, columns = np.nonzero(corrupt(aside, "zoom_blur", 5)[0, ..., 0])
    assert rows.max() == columns.max() == 27
    assert rows.min() >= 24
    assert columns.min() >= 24
    trail = corrupt(point, "motion_blur", 5)[0, ..., 0].astype(int)
    y, x = np.nonzero(trail)
    assert np.ptp(x) >= np.ptp(y)
    assert 5 <= np.ptp(x) <= 18
    assert x.min() == 16 or x.max() == 16


@pytest.mark.parametrize(
    ("severity", "end"), list(zip(SEVERITIES, (1.06, 1.11, 1.16, 1.21, 1.26), strict=True))
)
def test_zoom_blur_averages_the_authors_factors(severity: int, end: float) -> None:
    images = photographs(count=1)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    zoomed = [geometry.zoom(pixels, factor) for factor in np.arange(1, end, 0.01).tolist()]
    expected = torch.stack([pixels, *zoomed]).mean(0).permute(0, 2, 3, 1).numpy()
    assert np.abs(corrupt(images, "zoom_blur", severity) - expected).max() < 0.51


def test_elastic_images_are_skewed_at_the_authors_points() -> None:
    """They are 10 pixels from the middle of 32. An image of coordinates shows where each pixel is from."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    name = "elastic_transform"
    nothing = np.zeros((1, 32, 32, 3), np.uint8)
    batch = Batch(torch.stack([x, y, x])[None] / 31, Draws(nothing, name, 0))
    sources = 31 * digital.elastic_transform(batch, 0)[0, :2]
    points = torch.tensor([[26.0, 26], [6, 26], [6, 6]])
    moved = points + 32 * 0.08 * (2 * Draws(nothing, name, 0).uniform(3, 2)[0] - 1)
    inside = np.s_[10:22, 10:22]
    grid = torch.stack([x[inside], y[inside], torch.ones(12, 12)], -1).reshape(-1, 3)
    affine = torch.linalg.lstsq(grid, sources[:, 10:22, 10:22].reshape(2, -1).T).solution
    assert (torch.cat([moved, torch.ones(3, 1)], 1) @ affine - points).abs().max() < 0.02


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name.endswith("blur")])
def test_blur_keeps_the_mean(name: str) -> None:
    images = photographs()
    assert corrupt(images, name, 5).mean((1, 2)) == pytest.approx(images.mean((1, 2)), abs=8)


def test_snow_falls_in_opposite_directions_and_fog_is_smooth() -> None:
    grey = np.full((2, 64, 64, 3), 100, np.uint8)
    snow = corrupt(grey, "snow", 4)
    assert (snow == snow[:, ::-1, ::-1]).all()
    steps = [np.abs(np.diff(fog[..., 0], axis=2)).mean((1, 2)) / fog[..., 0].std((1, 2))
             for fog in (corrupt(grey, "fog", severity).astype(float) for severity in (2, 5))]  # fmt: skip
    assert (steps[0] < steps[1]).all()
    assert (steps[1] < 0.15).all()


def test_elastic_images_are_skewed_first_and_stretched_more_later() -> None:
    """A ramp that is skewed stays a plane."""
    y, x = np.mgrid[:32, :32]
    ramp = np.repeat((7 * x)[None, ..., None], 3, 3).astype(np.uint8)
    inside = np.s_[8:24, 8:24]
    basis = np.stack([x[inside].ravel(), y[inside].ravel(), np.ones(256)], 1)

    def bending(severity: int) -> float:
        levels = corrupt(ramp, "elastic_transform", severity)[0, ..., 0][inside].ravel().astype(float)
        return float(np.std(levels - basis @ np.linalg.lstsq(basis, levels, rcond=None)[0]))

    assert bending(1) < 0.5
    assert 2 < bending(5) < 7


def test_contrast_and_pixels() -> None:
    images = photographs()
    low = corrupt(images, "contrast", 5).astype(float)
    assert low.std((1, 2)) == pytest.approx(0.15 * images.std((1, 2)), abs=0.4)
    assert low.mean((1, 2)) == pytest.approx(images.mean((1, 2)), abs=0.5)
    rows = corrupt(images, "pixelate", 5)
    assert sum((rows[:, 1:] == rows[:, :-1]).all((0, 2, 3))) == 32 - int(32 * 0.65)


def test_fog_keeps_the_brightest_level_and_lightens_dark_places() -> None:
    images = photographs(count=3)
    fogged = corrupt(images, "fog", 3)
    assert (fogged.max((1, 2, 3)) <= images.max((1, 2, 3)) + 1).all()
    darkest = images.sum(-1) < np.quantile(images.sum(-1), 0.02)
    assert fogged[darkest].mean() > images[darkest].mean() + 10
    assert (fogged.std((1, 2)) < images.std((1, 2))).mean() > 0.7


def test_errors_name_what_is_allowed() -> None:
    images = photographs(count=1)
    with pytest.raises(ConfigError, match="unknown corruption 'rain'; there are gaussian_noise, shot_noise"):
        corrupt(images, "rain", 1)
    with pytest.raises(ConfigError, match="severity must be from 1 to 5, not 0"):
        corrupt(images, "fog", 0)
    with pytest.raises(ConfigError, match="seed must be at least 0, not -1"):
        corrupt(images, "fog", 1, seed=-1)
    with pytest.raises(DataError, match=r"uint8 \[N, H, W, 3\], not uint8 \[1, 32, 32\]"):
        corrupt(images[..., 0], "fog", 1)
    assert corrupt(images[:0], "fog", 1).shape == (0, 32, 32, 3)
