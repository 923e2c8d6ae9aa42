"""The members' views: each member sees its own view of the batch's images."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from coserve_training.config import Policy, TrainConfig
from tests.training.assembly.recording import (
    SIDE,
    TRAINING_IMAGES,
    Recorded,
    coded_image,
    record,
)


class Place(NamedTuple):
    """Where a view of a coded image was cut out."""

    image: int
    down: int
    right: int
    flipped: bool


def find(view: npt.NDArray[np.float64]) -> Place:
    """Return where a view `[32, 32, 3]` of a coded image comes from, judging by pixels at its centre."""
    image = round((np.median(view[..., 2]) - 4) / 3)
    row, column, _ = ((view[16, 16] - 4) / (7, 7, 3)).round()
    flipped = view[16, 17, 1] < view[16, 16, 1]
    return Place(image, int(row) - 16, int(column) - (15 if flipped else 16), bool(flipped))


def cut(place: Place) -> npt.NDArray[np.uint8]:
    """Return the view from `place`: pixels outside the image are black."""
    padded = np.pad(coded_image(place.image), ((SIDE, SIDE), (SIDE, SIDE), (0, 0)))
    down = SIDE + place.down
    right = SIDE + place.right
    view = padded[down : down + SIDE, right : right + SIDE]
    return view[:, ::-1] if place.flipped else view


def views_of(recorded: Recorded) -> list[npt.NDArray[np.float64]]:
    """Return the views of each step, `[S, N, H, W, 3]` from 0 to 255."""
    return [step.pixels(recorded.description) for step in recorded.steps]


def seen(recorded: Recorded) -> list[list[Place]]:
    """Return the places that each member was shown, from the first step to the last."""
    return [
        [find(view) for members in views_of(recorded) for view in members[index]]
        for index in range(len(recorded.steps[0].views))
    ]


def test_without_augmentation_all_members_see_the_normalised_images(
    config: TrainConfig, tmp_path: Path
) -> None:
    recorded = record(config, tmp_path / "run")
    images = np.stack([coded_image(index) for index in range(TRAINING_IMAGES)]) / 255
    np.testing.assert_allclose(recorded.description.mean, images.mean((0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(recorded.description.std, images.std((0, 1, 2)), atol=1e-3)
    for members in views_of(recorded):
        for views in members:
            for view in views:
                np.testing.assert_allclose(view, coded_image(find(view).image), atol=1e-3)
        np.testing.assert_array_equal(members[0], members[1])


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(
    config: TrainConfig, tmp_path: Path
) -> None:
    shown = np.reshape(
        [place.image for place in seen(record(config, tmp_path / "run"))[0]], (2, TRAINING_IMAGES)
    )
    for epoch in shown:
        assert sorted(epoch) == list(range(TRAINING_IMAGES))
        assert (epoch != np.arange(TRAINING_IMAGES)).mean() > 0.8
    assert (shown[0] != shown[1]).mean() > 0.8
    other = seen(record(replace(config, seed=1, epochs=1), tmp_path / "other"))[0]
    assert ([place.image for place in other] != shown[0]).mean() > 0.8


def test_members_draw_views_of_their_own_which_a_seed_repeats(config: TrainConfig, tmp_path: Path) -> None:
    changed = replace(config, crop="padded", flip=True)
    first, again = (record(changed, tmp_path / name) for name in ("first", "again"))
    for one, two in zip(first.steps, again.steps, strict=True):
        assert torch.equal(one.views, two.views)
    other = {
        place for members in seen(record(replace(changed, seed=1), tmp_path / "other")) for place in members
    }
    by_member = seen(first)
    assert [place.image for place in by_member[0]] == [place.image for place in by_member[1]]
    epochs = [
        places[start : start + TRAINING_IMAGES] for places in by_member for start in (0, TRAINING_IMAGES)
    ]
    for some, others in combinations(map(set, [*epochs, other]), 2):
        assert len(some & others) < 0.2 * len(some)
    for batches in by_member:
        drawn = [tuple(place[1:] for place in batches[i : i + 16]) for i in range(0, len(batches), 16)]
        assert len(set(drawn)) == len(drawn)


def test_padded_crops_and_flips(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(replace(config, crop="padded", flip=True, epochs=3), tmp_path / "run")
    places = []
    for members in views_of(recorded):
        for view in members.reshape(-1, SIDE, SIDE, 3):
            places.append(find(view))
            np.testing.assert_allclose(view, cut(places[-1]), atol=1e-3)
    assert {place.down for place in places} == set(range(-4, 5))
    assert {place.right for place in places} == set(range(-4, 5))
    assert 0.4 < np.mean([place.flipped for place in places]) < 0.6
    by_flip = [{place.right for place in places if place.flipped == flipped} for flipped in (False, True)]
    assert by_flip[0] == by_flip[1]


def test_flips_alone(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(replace(config, flip=True), tmp_path / "run")
    places = [place for places in seen(recorded) for place in places]
    assert {place[1:3] for place in places} == {(0, 0)}
    assert 0.35 < np.mean([place.flipped for place in places]) < 0.65


@pytest.mark.parametrize("change", [{"erasing": 0.5}, {"cutout": 8}])
def test_holes_hold_the_mean_colour_and_are_each_members_own(
    config: TrainConfig, tmp_path: Path, change: dict[str, float]
) -> None:
    recorded = record(replace(config, **change), tmp_path / "run")  # type: ignore[arg-type]
    shares = []
    alike = []
    for step, members in zip(recorded.steps, views_of(recorded), strict=True):
        holes = (step.views == 0).all(2).numpy()
        for hole, view in zip(holes.reshape(-1, SIDE, SIDE), members.reshape(-1, SIDE, SIDE, 3), strict=True):
            image = coded_image(find(view).image)
            np.testing.assert_allclose(view[~hole], image[~hole], atol=1e-3)
            rows = np.flatnonzero(hole.any(1))
            columns = np.flatnonzero(hole.any(0))
            assert hole.sum() == len(rows) * len(columns), "holes are rectangles"
            shares.append(hole.mean())
        alike.append((holes[0] == holes[1]).all((1, 2)).mean())
    if "erasing" in change:
        assert 0.4 < np.mean(np.array(shares) > 0) < 0.6
        assert np.mean(alike) < 0.5, "members erase different images"
    else:
        assert max(shares) == 8 * 8 / SIDE**2
        assert min(shares) >= 4 * 4 / SIDE**2
        assert np.mean(alike) < 0.2


def test_resized_crops_show_parts_of_the_configured_area(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(replace(config, crop="resized", crop_area=(0.2, 0.5)), tmp_path / "run")
    shown = []
    for members in views_of(recorded):
        for view in members.reshape(-1, SIDE, SIDE, 3):
            low = view.min((0, 1))
            high = view.max((0, 1))
            assert high[2] - low[2] < 1, "one image"
            shown.append((*low, *high))
    sides = (np.array(shown)[:, 3:5] - np.array(shown)[:, :2]) / (7 * SIDE)
    areas = sides.prod(1)
    assert 0.1 < areas.min() < 0.3
    assert 0.3 < areas.max() < 0.6
    assert len({tuple(np.round(box, 1)) for box in shown}) > 0.9 * len(shown), "each view is a draw"


def test_each_step_and_seed_erases_other_parts(config: TrainConfig, tmp_path: Path) -> None:
    changed = replace(config, erasing=0.9)
    first, again, other = (
        record(replace(changed, seed=seed), tmp_path / name).steps
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.views, two.views)
    holes = [(step.views == 0).all(2) for step in (*first, *other)]
    for some, others in combinations(holes, 2):
        assert not torch.equal(some, others)


def test_each_member_step_and_seed_has_random_numbers_of_its_own(config: TrainConfig, tmp_path: Path) -> None:
    first, again, other = (
        [
            call.noise
            for step in record(replace(config, seed=seed), tmp_path / name).steps
            for call in step.calls
        ]
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    for one, two in combinations([*first, *other], 2):
        assert not torch.equal(one, two)


@pytest.mark.parametrize("policy", [name for name in get_args(Policy) if name != "none"])
def test_policies_change_most_images_for_each_member_differently(
    config: TrainConfig, tmp_path: Path, policy: Policy
) -> None:
    plain = record(replace(config, epochs=1), tmp_path / "plain")
    recorded = record(replace(config, policy=policy, epochs=1), tmp_path / "run")
    unlike = []
    for step, members in zip(plain.steps, views_of(recorded), strict=True):
        original = step.pixels(plain.description)
        unlike.append((abs(members - original) > 1).any((2, 3, 4)))
        assert ((members > -1e-3) & (members < 255 + 1e-3)).all()
        assert (abs(members[0] - members[1]) > 1).any((1, 2, 3)).mean() > 0.5
    assert np.mean(unlike) > 0.5


def test_the_resolution_grows_as_configured(config: TrainConfig, tmp_path: Path) -> None:
    for crop in ("none", "padded"):
        growing = replace(config, start_size=16, epochs=6, crop=crop)
        recorded = record(growing, tmp_path / crop)
        sizes = [tuple(step.views.shape[-2:]) for step in recorded.steps[::3]]
        assert sizes == [(side, side) for side in (16, 20, 24, 32, 32, 32)]
        for step, (side, _) in zip(recorded.steps, np.repeat(sizes, 3, axis=0), strict=True):
            assert step.views.shape == (2, 16, 3, side, side)
        tested = [batch.views.shape[-1] for batch in recorded.tests[:-1:2]]
        assert tested == [side for side, _ in sizes]
        assert recorded.tests[-1].views.shape[-1] == SIDE, "the last evaluation is at full size"


@pytest.mark.parametrize("changes", [
    {"crop": "padded", "flip": True}, {"crop": "resized"}, {"policy": "randaugment"}, {"erasing": 0.5},
    {"cutout": 8},
])  # fmt: skip
def test_without_own_views_all_members_see_the_first_ones(
    config: TrainConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    own, same = (
        record(replace(config, epochs=1, own_views=own, **changes), tmp_path / f"{own}")
        for own in (True, False)
    )
    for step, shared in zip(own.steps, same.steps, strict=True):
        assert not torch.equal(step.views[0], step.views[1])
        for view in shared.views:
            assert torch.equal(view, step.views[0])


def test_mixup_blends_the_same_pairs_for_all_members(config: TrainConfig, tmp_path: Path) -> None:
    recorded = record(replace(config, mixup=1.0, epochs=4), tmp_path / "run")
    shares = []
    for members in views_of(recorded):
        np.testing.assert_array_equal(members[0], members[1])
        # Coded images differ by their blue alone, so each blend has the places of both, and a mean blue.
        np.testing.assert_allclose(
            members[0][..., :2], coded_image(0)[None, ..., :2].repeat(16, 0), atol=1e-3
        )
        blue = (members[0][:, 0, 0, 2] - 4) / 3
        shares.append(np.mean(abs(blue - blue.round()) > 1e-3))
    assert np.mean(shares) > 0.5
