"""Which rule applies to a request, and when: the ensemble's calibration, the settings, the load."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coserve_server.ensembles.calibration import Calibration
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import InvalidParametersError, SettingsError
from coserve_server.observability.record import Record
from coserve_server.pipeline.classifier import Classification, Classifier
from coserve_server.pipeline.combine import combine
from coserve_server.pipeline.early_stopping.rule import StoppingRule, StoppingRules, confidences
from coserve_server.settings import EarlyStop, Settings, load_settings
from tests.server.fake_engine import ensemble
from tests.server.pipeline.early_stopping.staged import StagedEngine, Staging, images, model, run, settle
from tests.server.pipeline.held_engine import HeldEngine

ROWS = [
    {"loss": 0.0, "confidence": 0.9, "members": 1.5, "top1": 0.93},
    {"loss": 0.001, "confidence": 0.8, "members": 1.3, "top1": 0.929},
    {"loss": 0.005, "confidence": 0.6, "members": 1.1, "top1": 0.925},
]


def calibrated(members: int = 2, rows: list[dict[str, float]] = ROWS) -> Ensemble:
    return replace(ensemble(members), calibration=Calibration.model_validate({"early_stopping": rows}))


def configured(**settings: Any) -> Settings:
    return load_settings(repository="unused", **settings)


def find_stopping(one: Ensemble, wanted: EarlyStop | None, settings: Settings) -> StoppingRule | None:
    return StoppingRules(settings).find(one, wanted)


@pytest.mark.parametrize(
    ("loss", "expected"), [(0, (0.9, 0.0)), (0.001, (0.8, 0.001)), (0.004, (0.8, 0.001)), (0.5, (0.6, 0.005))]
)
def test_the_largest_calibrated_loss_up_to_the_setting_counts(
    loss: float, expected: tuple[float, float]
) -> None:
    rule = find_stopping(calibrated(), None, configured(early_stop="loaded", early_stop_loss=loss))
    assert rule is not None
    assert (rule.confidence, rule.loss) == expected


def test_a_request_overrides_the_setting() -> None:
    one = calibrated()
    assert find_stopping(one, None, configured()) is None
    assert find_stopping(one, "off", configured(early_stop="always")) is None
    loaded = find_stopping(one, None, configured(early_stop="loaded"))
    assert loaded == StoppingRule(0.9, 0.0, 0.93, 1, always=False)
    assert find_stopping(one, "always", configured(early_stop="loaded")) == replace(loaded, always=True)


def test_an_ensemble_without_calibration_needs_a_confidence() -> None:
    one = ensemble()
    setting = configured(early_stop="always")
    assert find_stopping(one, None, setting) is None, "all members answer"
    with pytest.raises(
        InvalidParametersError, match="pair is not calibrated for stopping early; run coserve"
    ):
        find_stopping(one, "loaded", setting)
    explicit = configured(early_stop="always", early_stop_confidence=0.7)
    assert find_stopping(one, None, explicit) == StoppingRule(0.7, None, None, 1, always=True)
    calibration = find_stopping(calibrated(), None, explicit)
    assert calibration is not None
    assert calibration.confidence == 0.9, "the calibration counts where there is one"


def test_the_log_names_an_ensemble_without_calibration_once(caplog: pytest.LogCaptureFixture) -> None:
    rules = StoppingRules(configured(early_stop="always"))
    for one in (ensemble(), ensemble(), ensemble(name="other"), calibrated()):
        rules.find(one, None)
        rules.find(one, "off")
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [
        "pair",
        "other",
    ]
    assert "run coserve evaluate --calibrate" in caplog.text


def test_the_operators_quorum_is_the_minimum_and_has_no_measured_accuracy() -> None:
    rule = find_stopping(calibrated(4), None, configured(early_stop="always", min_members=3))
    assert rule == StoppingRule(0.9, 0.0, None, 3, always=True)
    assert find_stopping(calibrated(2), None, configured(early_stop="always", min_members=2)) is None
    one = calibrated(2)
    assert find_stopping(one.alone(one.members[0]), "always", configured()) is None


def test_a_confidence_of_1_means_all_members() -> None:
    rows = [{"loss": 0.0, "confidence": 1.0}]
    assert find_stopping(calibrated(rows=rows), "always", configured()) is None


@pytest.mark.parametrize(
    "wrong", [{"early_stop": "yes"}, {"early_stop_loss": 1}, {"early_stop_confidence": 1}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        configured(**wrong)


def test_the_confidence_is_the_largest_probability_of_the_combined_answer() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 3, (3, 5, 7)).astype(np.float32)
    weights = np.array([1.0, 0.25, 0.5])
    calibration = Calibration(temperatures={3: 1.7})
    totals = (logits * weights[:, None, None]).sum(0, dtype=np.float64)
    expected = combine(logits, weights, calibration).probabilities.max(-1)
    np.testing.assert_allclose(confidences(totals, np.full(5, weights.sum() * 1.7)), expected)
    assert confidences(np.array([[1e30, -1e30]]), np.ones(1)).tolist() == [1]


@pytest.mark.parametrize(("weights", "answered"), [((1, 3, 1), (0, 1)), ((1, 1, 1), (0, 1, 2))])
def test_an_uncalibrated_ensemble_is_sure_by_the_weighted_mean(
    weights: tuple[float, ...], answered: tuple[int, ...]
) -> None:
    one = model(3)
    members = tuple(
        replace(member, weight=weight) for member, weight in zip(one.members, weights, strict=True)
    )
    # The probabilities of these means are 0.88, and then 0.970 or 0.953.
    engine = StagedEngine(replace(one, members=members), 1, lambda _, member: (2, 4, 0)[member])
    staging = Staging(engine, confidence=0.96)

    async def use() -> None:
        task = staging.ask(1.0)
        await staging.finish(task)
        assert task.result().answered == [answered]

    run(use)


async def classify(core: Classifier, *values: float, early_stop: Any = None) -> Classification:
    record = Record(received_ns=time.perf_counter_ns())
    return await core.infer(record, core.engine.ensembles["staged"], images(*values), None, early_stop)


def test_loaded_means_that_images_wait_for_the_engine() -> None:
    one = replace(model(2), calibration=calibrated().calibration)
    engine = StagedEngine(one, 2, lambda _image, _member: 9)
    core = Classifier(engine, configured(early_stop="loaded", max_images=9), cores=1)

    async def use() -> None:
        idle = asyncio.create_task(classify(core, 1.0))
        at_once = asyncio.create_task(classify(core, 2.0))
        await settle()
        assert [(given.members, given.images) for given in engine.log] == [([0, 1], [1, 2])]
        loaded = asyncio.create_task(classify(core, 3.0))
        whole = asyncio.create_task(classify(core, 4.0, early_stop="off"))
        await settle()
        tasks = [idle, at_once, loaded, whole]
        while not all(task.done() for task in tasks):
            engine.answer(engine.open[0])
            await settle()
        assert [task.result().stopping is None for task in tasks] == [True, True, False, True]
        assert [len(task.result().answered[0]) for task in tasks] == [2, 2, 1, 2]
        large = asyncio.create_task(classify(core, 5.0, 6.0, 7.0, 8.0, 9.0))
        await settle()
        assert engine.log[-1].members != [0, 1], "more images than a batch takes"
        while not large.done():
            engine.answer(engine.open[0])
            await settle()

    asyncio.run(asyncio.wait_for(use(), 30))


def test_a_backend_that_batches_is_loaded_while_it_has_another_request() -> None:
    one = replace(model(2), calibration=calibrated().calibration)
    engine = StagedEngine(one, 2, lambda _image, _member: 9)
    engine.batching = True
    core = Classifier(engine, configured(early_stop="loaded"), cores=1)

    async def use() -> None:
        tasks = []
        for value in (1.0, 2.0, 3.0):
            tasks.append(asyncio.create_task(classify(core, value)))
            await settle()
        assert [given.members for given in engine.log] == [[0, 1], [0], [1]]
        for given in list(engine.log):
            engine.answer(given)
        await asyncio.gather(*tasks)
        await settle()
        assert not core._batcher._sent
        last = asyncio.create_task(classify(core, 4.0))
        await settle()
        assert engine.log[-1].members == [0, 1], "it is idle again"
        engine.answer(engine.log[-1])
        await last

    asyncio.run(asyncio.wait_for(use(), 30))


def test_other_ensembles_on_the_same_resource_are_load_too() -> None:
    engine = HeldEngine()
    core = Classifier(engine, configured(), cores=1)

    async def use() -> None:
        record = Record(received_ns=time.perf_counter_ns())
        task = asyncio.create_task(core.infer(record, engine.ensembles["pair"], images(1)))
        await settle()
        assert core._batcher.busy(engine.ensembles["other"])
        engine.answer()
        await task
        await settle()
        assert not core._batcher.busy(engine.ensembles["other"])

    asyncio.run(asyncio.wait_for(use(), 30))
