"""Views of members: what each option adds, and what they depend on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coserve_images.decode import OpenedImage
from coserve_training import training_run
from coserve_training.config import TrainConfig
from coserve_training.data import Batches, LazyImages, Pixels, Split, Square
from coserve_training.data.order import BatchOrder
from coserve_training.views import MemberViews
from coserve_training.views.crop import draw_box, flip, shift
from coserve_training.views.policies import make_policy
from tests.training.data.photographs import photograph

MEAN = (0.5, 0.4, 0.25)
IMAGE = photograph(0, 32, 32)
SQUARE = Square(32, 32, "bilinear")


@pytest.fixture
def plain(config: TrainConfig) -> TrainConfig:
    return replace(config, crop="none", flip=False)


def draw(
    config: TrainConfig, members: tuple[int, ...] = (0, 1), epoch: int = 0, index: int = 0, repeat: int = 0
) -> Pixels:
    return MemberViews(config, members, MEAN).draw(OpenedImage(IMAGE), SQUARE, epoch, index, repeat)


def test_without_augmentation_members_see_the_image(plain: TrainConfig) -> None:
    assert (draw(plain) == np.asarray(IMAGE)).all()


@pytest.mark.parametrize("changes", [
    {"crop": "padded"}, {"crop": "resized"}, {"flip": True}, {"policy": "autoaugment-cifar10"},
    {"policy": "autoaugment-svhn"}, {"policy": "autoaugment-imagenet"}, {"policy": "randaugment"},
])  # fmt: skip
def test_each_option_draws_views_by_seed_epoch_member_image_and_repeat(
    plain: TrainConfig, changes: dict[str, str]
) -> None:
    config = replace(plain, **changes)  # type: ignore[arg-type]

    def series(seed: int = 0, member: int = 0, epoch: int = 0, repeat: int = 0) -> list[bytes]:
        seeded = replace(config, seed=seed)
        return [draw(seeded, (member,), epoch, index, repeat).tobytes() for index in range(16)]

    first = series()
    assert first == series()
    assert len(set(first)) >= 2
    others = [series(seed=1), series(member=1), series(epoch=1), series(repeat=1)]
    assert len({tuple(views) for views in (first, *others)}) == 5


def test_every_image_and_member_has_a_sub_policy_of_its_own(plain: TrainConfig) -> None:
    views = [draw(replace(plain, policy="autoaugment-cifar10"), index=index) for index in range(60)]
    for member in range(2):
        assert len({view[member].tobytes() for view in views}) > 25
    assert sum((first == second).all() for first, second in views) < 20


def test_a_member_sees_the_same_without_the_others(config: TrainConfig) -> None:
    config = replace(config, policy="randaugment")
    for index in range(8):
        assert (draw(config, (1,), index=index)[0] == draw(config, (0, 1), index=index)[1]).all()


def test_images_are_shifted_then_flipped_then_augmented(config: TrainConfig) -> None:
    config = replace(config, policy="autoaugment-svhn", seed=3)
    policy = make_policy(config, (128, 102, 64))
    assert policy is not None
    for index in range(20):
        random = np.random.default_rng([3, 7, 1, index, 2])
        expected = policy(flip(shift(IMAGE, random), random), random)
        assert (draw(config, (1,), 7, index, 2) == np.asarray(expected)).all()


def test_padding_reflects_the_image(config: TrainConfig) -> None:
    config = replace(config, flip=False, padding="reflect")
    padded = np.pad(np.asarray(IMAGE), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    for index in range(20):
        left, top = np.random.default_rng([0, 0, 1, index, 0]).integers(-4, 5, 2) + 4
        assert (draw(config, (1,), index=index)[0] == padded[top : top + 32, left : left + 32]).all()


def test_randaugment_fills_with_the_mean_colour(plain: TrainConfig) -> None:
    config = replace(plain, policy="randaugment", policy_operations=1)
    corners = {tuple(draw(config, (0,), index=index)[0, 0, 0].tolist()) for index in range(200)}
    assert (128, 102, 64) in corners


def test_views_grow_with_the_epochs(config: TrainConfig) -> None:
    growing = replace(config, epochs=8, start_size=16)
    for crop in ("padded", "resized", "none"):
        views = [draw(replace(growing, crop=crop), epoch=epoch) for epoch in (0, 2, 4, 7)]  # type: ignore[arg-type]
        assert [view.shape for view in views] == [(2, size, size, 3) for size in (16, 24, 32, 32)]
    for interpolation in ("bilinear", "bicubic"):
        small = draw(replace(growing, crop="none", flip=False, interpolation=interpolation))  # type: ignore[arg-type]
        assert (small == np.asarray(IMAGE.resize((16, 16), Image.Resampling[interpolation.upper()]))).all()


def test_crops_have_the_recipes_area_and_interpolation(plain: TrainConfig) -> None:
    resized = replace(plain, crop="resized", crop_area=(0.2, 0.3))
    for interpolation in ("bilinear", "bicubic"):
        view = draw(replace(resized, interpolation=interpolation), (1,), 2, 3, 4)  # type: ignore[arg-type]
        box = draw_box(np.random.default_rng([0, 2, 1, 3, 4]), 32, 32, (0.2, 0.3))
        expected = IMAGE.resize((32, 32), Image.Resampling[interpolation.upper()], box=box)
        assert (view == np.asarray(expected)).all()


def test_images_in_memory_have_the_same_views_with_any_workers_and_batches(config: TrainConfig) -> None:
    config = replace(config, policy="autoaugment-cifar10")
    pixels = np.stack([np.asarray(photograph(index, 32, 32)) for index in range(24)])
    split = Split(pixels, np.arange(24) % 3)

    def epoch(workers: int, batch_size: int) -> Pixels:
        order = BatchOrder(24, batch_size, 0, 1)
        order.set_epoch(5)
        batches = Batches(split.with_views(MemberViews(config, (0, 1), MEAN), workers), order)
        views = np.concatenate([images.numpy() for images, _ in batches], axis=1)
        return views[:, np.argsort(np.concatenate(list(order)))]

    first = epoch(0, 6)
    assert first.shape == (2, 24, 32, 32, 3)
    assert (first == epoch(1, 8)).all()
    assert (first == epoch(2, 4)).all()


@pytest.mark.parametrize(("placed", "members"), [(False, [0, 1]), (True, [0])])
def test_a_run_trains_on_the_views_of_its_members(
    config: TrainConfig,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    placed: bool,
    members: list[int],
) -> None:
    class StopRunError(Exception):
        pass

    seen = []

    def stop(_trainer: object, _module: object, training: Split, test: Split, _checkpoint: object) -> None:
        seen.extend((training, test))
        raise StopRunError

    monkeypatch.setattr(training_run, "_fit", stop)
    config = replace(config, data=(str(image_folder),), batch_size=30)
    if placed:
        config = replace(config, split=1)
    with pytest.raises(StopRunError):
        training_run.train(config, tmp_path / "run", workers=3, place_members=placed)
    training, test = seen
    assert isinstance(training.images, LazyImages)
    assert training.images.workers == 3
    views = training.images.views
    assert isinstance(views, MemberViews)
    assert views.config == config
    assert list(views.members) == members
    assert isinstance(test.images, np.ndarray)
