from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from coserve_export.ensemble import Description, Preprocessing
from coserve_export.errors import DescriptionError, ParityError
from coserve_export.mean_graph import mean_graph
from coserve_export.parity import Parity, compare_logits, require_parity, run_in_batches

Describe = Callable[..., Description]


@pytest.mark.parametrize(
    "name", ["wide_resnet10_4_s2", "a", "v1.2-x", "member0", "members_mean_not", "a" * 200]
)
def test_valid_names(describe: Describe, name: str) -> None:
    assert describe(name).member_names == [f"{name}_member0", f"{name}_member1"]


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "a/b", "..", "a b", "é", "a\n", "a_member0", "a_mean", "a_member12", "a" * 201]
)
def test_invalid_names(describe: Describe, name: str) -> None:
    with pytest.raises(DescriptionError, match="is not a valid ensemble name"):
        describe(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": []}, "no labels"),
        ({"labels": ["defect"]}, "'defect' is the only label, so its probability would always be 1"),
        ({"labels": ["a", " "]}, "label 2 is blank"),
        ({"labels": ["a", "b\nc"]}, "label 2 is blank, padded or has several lines"),
        ({"labels": ["a", "caf\udce9"]}, r"label 2 cannot be written as UTF-8: 'caf\\udce9'"),
        ({"weights": [1.0]}, "1 weights for 2 members"),
        ({"weights": [1.0, 0.0]}, "positive"),
        ({"weights": [1.0, float("inf")]}, "finite"),
        ({"max_batch_size": 0}, "maximum batch size"),
        ({"num_members": 0}, "at least one member"),
    ],
)
def test_invalid_descriptions(describe: Describe, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        describe(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "image size"),
        (
            {"resize_size": 7},
            "the resize size must be at least 8, the longer side of the network's input, not 7",
        ),
        ({"interpolation": "nearest"}, "bilinear or bicubic"),
        ({"mean": [0.5]}, "mean must be three finite numbers"),
        ({"std": [1.0, 1.0, float("nan")]}, "std must be three finite numbers"),
        ({"std": [1.0, 0.0, 1.0]}, "std must be positive"),
    ],
)
def test_invalid_preprocessing(
    preprocessing: dict[str, object], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DescriptionError, match=message):
        Preprocessing.from_json(preprocessing | changes)


def test_preprocessing_must_have_all_keys(preprocessing: dict[str, object]) -> None:
    with pytest.raises(DescriptionError, match="preprocessing must have the keys"):
        Preprocessing.from_json({key: value for key, value in preprocessing.items() if key != "std"})


def test_normalise(preprocessing: dict[str, object]) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[1, 2, 3] = (255, 51, 0)
    normalised = Preprocessing.from_json(preprocessing).normalise(images)
    assert (normalised.shape, normalised.dtype) == ((2, 3, 8, 8), np.float32)
    expected = [(1 - 0.49) / 0.2, (0.2 - 0.48) / 0.2, (0 - 0.44) / 0.25]
    np.testing.assert_allclose(normalised[1, :, 2, 3], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("members", "weights"), [(1, None), (1, [3.0]), (3, None), (3, [1.0] * 3), (3, [1.0, 2.0, 5.0])]
)
@pytest.mark.parametrize("batch", [1, 4])
def test_the_mean_graph_averages(members: int, weights: list[float] | None, batch: int) -> None:
    graph = mean_graph(members, 5, weights)
    onnx.checker.check_model(graph, full_check=True)
    logits = np.random.default_rng(0).normal(size=(members, batch, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    [mean] = session.run(["logits"], {f"logits{i}": values for i, values in enumerate(logits)})
    np.testing.assert_allclose(mean, np.average(logits, axis=0, weights=weights), atol=1e-6)


def test_compare_logits() -> None:
    reference = np.array([[1, 2], [3, 0]], np.float32)
    assert compare_logits(reference, reference + np.float32(0.5)) == Parity(0.5, 1.0, 2)
    assert compare_logits(reference, reference[:, ::-1]).top1_agreement == 0


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_must_be_finite(broken: float) -> None:
    reference = np.ones((3, 2), np.float32)
    actual = reference.copy()
    actual[1, 0] = broken
    for pair in ((reference, actual), (actual, reference), (actual, actual)):
        with pytest.raises(ParityError, match="member 7: its logits are not all finite"):
            require_parity(compare_logits(*pair), "member 7", float("inf"))


def test_one_image_in_a_hundred_may_change_class() -> None:
    near = Parity(max_abs_difference=0.0, top1_agreement=1.0, images=64)
    require_parity(replace(near, top1_agreement=63 / 64), "member 0", 1.0)
    require_parity(replace(near, top1_agreement=0.99, images=1000), "member 0", 1.0)
    with pytest.raises(ParityError, match="2 of 64 images change class"):
        require_parity(replace(near, top1_agreement=62 / 64), "member 0", 1.0)


@pytest.mark.parametrize("count", [2, 33, 40])
def test_the_first_image_runs_alone_and_the_rest_in_batches(count: int) -> None:
    sizes: list[int] = []

    def forward(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return images[:, 0, 0]

    images = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 1, 2), np.float32)
    np.testing.assert_array_equal(run_in_batches(forward, images)[:, 0], np.arange(count))
    assert sizes[0] == 1
    assert max(sizes) > 1 or count == 2
