import asyncio
import io
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coserve_images import formats
from coserve_server import errors
from coserve_server.ensembles.accuracy import Accuracy
from coserve_server.observability.record import Record
from coserve_server.outcomes import Failure
from coserve_server.pipeline import preparation
from coserve_server.pipeline.classifier import Classification, Classifier
from coserve_server.pipeline.preparation import EncodedImage
from coserve_server.settings import Settings, load_settings
from tests.images.profiles import ADOBE_RGB as PRIMARIES
from tests.images.profiles import rgb_profile
from tests.server.fake_engine import FakeEngine, ensemble, png, run

ADOBE_RGB = rgb_profile(PRIMARIES, 2.2)


def settings(**changes: Any) -> Settings:
    return load_settings(repository="unused", **changes)


def classifier(engine: FakeEngine, **changes: Any) -> Classifier:
    return Classifier(engine, settings(**changes), cores=2)


def received() -> Record:
    return Record(received_ns=time.perf_counter_ns())


def classify(core: Classifier, *images: EncodedImage) -> Classification:
    async def go() -> Classification:
        try:
            return await core.classify(received(), core.catalogue.ensemble(None), images)
        finally:
            await core.close()

    return asyncio.run(go())


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((40, 30), 90).save(file, "JPEG")
    return file.getvalue()


def test_a_request_goes_all_the_way() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 3], [0, 0]), run(0, 1, [3, 1], [0, 8])]])
    answer = classify(classifier(engine), EncodedImage(png("red")), EncodedImage(png("lime")))
    np.testing.assert_allclose(answer.combined.logits, [[2, 2], [0, 4]])
    (batch,) = engine.given
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[:, :, 0, 0], [[1, 0, 0], [0, 1, 0]])
    assert all(value >= 0 for value in vars(answer.timings).values())


def test_a_degraded_answer_averages_the_members_that_answered() -> None:
    engine = FakeEngine(
        ensemble(members=3), scripts=[[run(0, 1, [1, 3]), run(0, 1, error="broke"), run(0, 1, [3, 9])]]
    )
    answer = classify(classifier(engine, min_members=2), EncodedImage(png()))
    np.testing.assert_allclose(answer.combined.logits, [[2, 6]])
    assert [member.failure for member in answer.members] == [None, Failure("failed", "broke"), None]


@pytest.mark.parametrize(("min_members", "quorum"), [(None, 3), (2, 2), (9, 3)])
def test_quorum(min_members: int | None, quorum: int) -> None:
    core = classifier(FakeEngine(ensemble(members=3)), min_members=min_members)
    assert core.catalogue.quorum(core.catalogue.ensemble("pair")) == quorum
    assert core.catalogue.ready(core.catalogue.ensemble("pair"))


def test_a_bad_image_is_named() -> None:
    core = classifier(FakeEngine(ensemble()))
    with pytest.raises(errors.BadImageError, match=r"image 1 \(b.png\): not an image"):
        classify(core, EncodedImage(png(), "a.png"), EncodedImage(b"x", "b.png"))


def test_no_image() -> None:
    with pytest.raises(errors.InvalidParametersError, match="no image"):
        classify(classifier(FakeEngine(ensemble())))


def test_too_many_images() -> None:
    core = classifier(FakeEngine(ensemble()), max_images=1)
    with pytest.raises(errors.TooManyImagesError, match="2 images, more than the 1 allowed"):
        classify(core, EncodedImage(png()), EncodedImage(png()))


def test_decoding_ends_at_the_deadline() -> None:
    core = classifier(FakeEngine(ensemble()), deadline_ms=1e-6)
    with pytest.raises(errors.DeadlineError, match="not decoded before the deadline"):
        classify(core, EncodedImage(png()), EncodedImage(png()))


def test_a_decoding_that_has_begun_is_told_its_deadline() -> None:
    """A late image frees its thread, rather than being decoded for nobody."""
    with pytest.raises(errors.DeadlineError, match="not decoded before the deadline"):
        preparation._Job(
            EncodedImage(png()),
            0,
            ensemble().preprocessing,
            10_000,
            time.perf_counter_ns(),
            preparation._Processes(),
        ).prepare()


def test_pixels_of_a_request_are_counted_before_any_is_decoded() -> None:
    truncated = [EncodedImage(jpeg()[:-40])] * 4
    core = classifier(FakeEngine(ensemble()), max_pixels=2000, max_request_pixels=4 * 40 * 30 - 1)
    text = "4 images of 4800 pixels in total, more than the 4799 allowed in a request; send fewer at once"
    with pytest.raises(errors.TooManyPixelsError, match=text):
        classify(core, *truncated)
    core = classifier(FakeEngine(ensemble()), max_pixels=2000, max_request_pixels=4 * 40 * 30)
    with pytest.raises(errors.BadImageError, match=r"image \d: broken or truncated"):
        classify(core, *truncated)
    core = classifier(FakeEngine(ensemble()), max_pixels=2000, max_request_pixels=2000)
    with pytest.raises(errors.BadImageError, match="image 3: not an image"):
        classify(core, *truncated[:3], EncodedImage(b"x"))


def test_images_whose_pixels_were_counted_are_classified() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 3], [0, 0])] * 2] * 2)
    core = classifier(engine, max_pixels=16, max_request_pixels=47)
    colours = [EncodedImage(png(colour)) for colour in ("red", "lime")]
    first = classify(core, *colours)
    core = classifier(engine, max_pixels=16, max_request_pixels=16)
    with pytest.raises(errors.TooManyPixelsError):
        classify(core, *colours)
    core = classifier(engine, max_pixels=17, max_request_pixels=32)
    second = classify(core, *colours)
    np.testing.assert_array_equal(*engine.given)
    assert first.timings.decode > 0
    assert second.timings.decode > 0


def test_an_image_within_its_limit_is_always_within_the_request_s() -> None:
    message = "max_request_pixels: 15 is less than the 16 that max_pixels allows for one image"
    with pytest.raises(errors.SettingsError, match=message):
        classifier(FakeEngine(ensemble()), max_pixels=16, max_request_pixels=15)


def test_heic_without_its_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    formats.register_heic.cache_clear()
    core = classifier(FakeEngine(ensemble()))
    with pytest.raises(errors.BadImageError, match=r"image 0 \(a.heic\): HEIC needs the extra heic"):
        classify(core, EncodedImage(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "a.heic"))


@pytest.mark.parametrize(("kind", "profile", "cheap"), [
    ("PNG", b"", True), ("JPEG", b"", True), ("PNG", ADOBE_RGB, False), ("JPEG", ADOBE_RGB, False),
    ("TIFF", ADOBE_RGB, False), ("WEBP", ADOBE_RGB, False), ("AVIF", ADOBE_RGB, False),
])  # fmt: skip
def test_colour_profiles_are_not_read_on_the_event_loop(kind: str, profile: bytes, cheap: bool) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, icc_profile=profile)
    assert preparation._is_cheap(file.getvalue()) == cheap


def test_which_ensemble_answers() -> None:
    cat = ensemble(name="cat")
    dog = ensemble(name="dog")
    assert classifier(FakeEngine(cat)).catalogue.ensemble(None) is cat
    both = FakeEngine(cat, dog)
    assert classifier(both).catalogue.ensemble("dog") is dog
    assert classifier(both, default_model="dog").catalogue.ensemble(None) is dog
    with pytest.raises(errors.InvalidParametersError, match="choose from cat, dog"):
        classifier(both).catalogue.ensemble(None)
    with pytest.raises(errors.UnknownModelError, match="model 'cow' is not served; choose from cat, dog"):
        classifier(both).catalogue.ensemble("cow")
    with pytest.raises(errors.UnknownModelError, match=r"model 'cow' is not served; no ensemble is$"):
        classifier(FakeEngine()).catalogue.ensemble("cow")


def test_an_ensemble_that_may_exist_is_not_unknown() -> None:
    engine = FakeEngine()
    engine.missing = "no server answers"
    for name in (None, "cow"):
        with pytest.raises(errors.NoQuorumError, match="no server answers"):
            classifier(engine).catalogue.ensemble(name)


def test_what_keeps_ensembles_from_answering_is_named() -> None:
    engine = FakeEngine(ensemble())
    core = classifier(engine, default_model="cow")
    assert core.catalogue.faults() == ["default model 'cow' is not served; choose from pair"]
    engine.ready = False
    engine.missing = "one has not loaded x"
    assert core.catalogue.faults() == [
        "one has not loaded x",
        "default model 'cow' is not served; choose from pair",
        "pair: 2 members are needed, not ready: m0, m1",
    ]


MEASURED = Accuracy.model_validate(
    {
        "ensemble": {"top1": 0.9, "nll": 0.3},
        "members": [{"top1": 0.7}, {"top1": 0.8}, {}],
        "subsets": [{"members": [1, 0], "top1": 0.85, "temperature": 1.1}, {"members": [1], "top1": 0.81}],
    }
)


@pytest.mark.parametrize(
    ("used", "top1"),
    [([0, 1, 2], 0.9), ([0, 1], 0.85), ([1], 0.81), ([0], 0.7), ([2], None), ([1, 2], None)],
)
def test_the_measured_accuracy_is_that_of_the_members_used(used: list[int], top1: float | None) -> None:
    script = [run(0, 1, [1, 3]) if index in used else run(0, 1, error="broke") for index in range(3)]
    engine = FakeEngine(ensemble(members=3, accuracy=MEASURED), scripts=[script])
    assert classify(classifier(engine, min_members=1), EncodedImage(png())).measured_top1 == top1


@pytest.mark.parametrize(("asked_ms", "late"), [(1e-6, True), (None, False), (1e9, False)])
def test_a_request_may_shorten_the_deadline(asked_ms: float | None, late: bool) -> None:
    core = classifier(FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 3], [1, 3]), None]]), deadline_ms=500)

    async def go() -> None:
        try:
            await core.classify(
                received(),
                core.catalogue.ensemble(None),
                [EncodedImage(png())] * 2,
                None if asked_ms is None else round(asked_ms * 1e6),
            )
        finally:
            await core.close()

    with pytest.raises(errors.DeadlineError, match="not decoded" if late else "m1: no answer"):
        asyncio.run(go())


def test_requests_beyond_the_limit_are_refused_until_one_ends() -> None:
    core = classifier(FakeEngine(ensemble()), max_requests=1)
    with (
        core.admitted(Record()),
        pytest.raises(errors.OverloadedError, match="1 requests are in progress"),
        core.admitted(Record()),
    ):
        pass
    with core.admitted(Record()):
        pass
