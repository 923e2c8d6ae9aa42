"""The rule for what networks give, held against outputs that people export: each kind with many networks."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve_export.ensemble import Preprocessing
from coserve_export.errors import NetworkError
from coserve_export.logits import run_network
from coserve_export.samples import Samples, make_samples

Array = npt.NDArray[np.float32]
Head = Callable[[Array], Array]
SAMPLES = make_samples(Preprocessing(8, 8, 8, "bilinear", [0.5] * 3, [0.25] * 3), None)

networks = st.builds(
    lambda classes, scale, seed: (
        np.random.default_rng(seed).normal(size=(3 * 8 * 8, classes)).astype(np.float32) * scale
    ),
    st.integers(2, 9),
    st.sampled_from([1e-3, 0.1, 1.0]),
    st.integers(0, 1000),
)


def softmax(logits: Array, temperature: float = 1) -> Array:
    exponents = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return exponents / exponents.sum(axis=1, keepdims=True)


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(logits, -60, 60)))


def one_hot(logits: Array) -> Array:
    return np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(axis=1)]


def run(weights: Array, head: Head, samples: Samples = SAMPLES) -> Array:
    def forward(images: Array) -> Array:
        return head(images.reshape(len(images), -1) @ weights).astype(np.float32)

    return run_network(forward, samples, weights.shape[1], "it", quantised=False)


LOGITS: dict[str, Head] = {
    "plain": lambda logits: logits,
    "log-softmax": lambda logits: np.log(softmax(np.clip(logits, -30, 30))),
    "temperature": lambda logits: logits / 20,
    "shifted": lambda logits: logits + 50,
    "whole": lambda logits: np.round(logits / np.abs(logits).max(axis=1, keepdims=True) * 100),
    "negative distances": lambda logits: -np.abs(logits),
    "relu": lambda logits: np.maximum(logits, 0) + 0.01 * np.abs(logits),
}
OTHERS: dict[str, Head] = {
    "softmax": softmax,
    "softmax with a temperature": lambda logits: softmax(logits, 5),
    "softmax in per cent": lambda logits: 100 * softmax(logits),
    "softmax in half precision": lambda logits: softmax(logits).astype(np.float16),
    "softmax in 8 bits": lambda logits: np.round(softmax(logits) * 255) / 255,
    "softmax of other classes first": lambda logits: softmax(logits)[:, ::-1],
    "sigmoid": sigmoid,
    "one-hot": one_hot,
    "ranks": lambda logits: logits.argsort(axis=1).argsort(axis=1),
    "votes": lambda logits: np.round(np.maximum(logits, 0) / np.abs(logits).max(axis=1, keepdims=True) * 9),
    "a constant": lambda logits: np.broadcast_to(np.arange(logits.shape[1]), logits.shape),
    "the same for every class": lambda logits: np.repeat(logits[:, :1], logits.shape[1], axis=1),
}


@pytest.mark.parametrize("kind", LOGITS)
@settings(max_examples=10, deadline=None)
@given(networks)
def test_logits_are_taken(kind: str, weights: Array) -> None:
    run(weights, LOGITS[kind])


@pytest.mark.parametrize("kind", OTHERS)
@settings(max_examples=10, deadline=None)
@given(networks)
def test_other_outputs_are_refused(kind: str, weights: Array) -> None:
    with pytest.raises(NetworkError, match="it: gives "):
        run(weights, OTHERS[kind])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (softmax, "gives probabilities or one-hot classes.*without its last softmax"),
        (sigmoid, "gives values between 0 and 1; members must give logits"),
        (OTHERS["a constant"], "gives the same logits for every image"),
        (OTHERS["the same for every class"], "gives every class the same logit"),
        (lambda logits: logits.T, r"a batch of 1 gives outputs of shape \(4, 1\), not \[1, 4\]"),
        (lambda logits: logits[:, :, None], r"shape \(1, 4, 1\)"),
        (lambda logits: logits.argmax(axis=1), r"shape \(1,\)"),
        (lambda logits: logits[:, :3], "gives 3 classes, but there are 4 labels"),
        (lambda logits: logits[:1], r"a batch of 8 gives outputs of shape \(1, 4\), not \[8, 4\]"),
        (lambda logits: logits - logits.mean(axis=0), "from those of the same image in a batch"),
        (lambda logits: softmax(logits.T).T, "from those of the same image in a batch"),
    ],
)
def test_messages(head: Head, message: str) -> None:
    weights = np.random.default_rng(0).normal(size=(3 * 8 * 8, 4)).astype(np.float32)
    with pytest.raises(NetworkError, match=message):
        run(weights, head)


def test_batch_norm_in_training_mode_shows_between_images_that_differ() -> None:
    """Random pixels have the same mean and deviation, alone and together."""
    weights = np.random.default_rng(0).normal(size=(3 * 8 * 8, 4)).astype(np.float32)

    def forward(images: Array) -> Array:
        axes = (0, 2, 3)
        deviation = images.std(axes, keepdims=True) + 1e-3
        normed = (images - images.mean(axes, keepdims=True)) / deviation
        return (normed.reshape(len(images), -1) @ weights).astype(np.float32)

    with pytest.raises(NetworkError, match="export it in eval mode, where no layer uses the rest"):
        run_network(forward, SAMPLES, 4, "it", quantised=True)


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_random_layers(share: float) -> None:
    weights = np.random.default_rng(0).normal(size=(3 * 8 * 8, 4)).astype(np.float32)
    random = np.random.default_rng(1)

    def dropout(logits: Array) -> Array:
        return logits * (random.random(logits.shape) > share)

    with pytest.raises(NetworkError, match="from run to run; export it in eval mode"):
        run(weights, dropout)


def test_a_network_that_fails_for_one_image_names_it() -> None:
    """A deviation of 0 is divided by."""

    def forward(images: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (images.mean((2, 3)) - 5) / np.ptp(images, axis=(1, 2, 3), keepdims=True)[:, :, 0, 0]

    with pytest.raises(NetworkError, match="its logits are not all finite for a white image"):
        run_network(forward, SAMPLES, 3, "it", quantised=False)


def test_a_network_that_runs_nothing() -> None:
    def forward(_: Array) -> Array:
        raise NetworkError("it: ONNX Runtime cannot run it: bad shape")

    with pytest.raises(NetworkError, match=r"bad shape$"):
        run_network(forward, SAMPLES, 3, "it", quantised=False)


def test_a_network_that_runs_single_images_only() -> None:
    def forward(images: Array) -> Array:
        if len(images) > 1:
            raise NetworkError("it: ONNX Runtime cannot run it: bad shape")
        return images.mean((2, 3))

    with pytest.raises(NetworkError, match="bad shape; it does run single images, so its batch size may be"):
        run_network(forward, SAMPLES, 3, "it", quantised=False)


@pytest.mark.parametrize(("head", "refused"), [(softmax, True), (lambda logits: logits, False)])
def test_far_brighter_images_tell_small_logits_from_probabilities(head: Head, refused: bool) -> None:
    """Positive logits below 1 look like the outputs of a sigmoid, and numbers may overflow on the way."""

    def forward(images: Array) -> Array:
        with np.errstate(invalid="ignore", over="ignore"):
            scores = (np.abs(images).mean((2, 3)) * 0.1 + 0.2 * np.arange(3)).astype(np.float16)
            return head(scores * (1 + 0 * scores)).astype(np.float32)

    if refused:
        with pytest.raises(NetworkError, match="gives probabilities"):
            run_network(forward, SAMPLES, 3, "it", quantised=False)
    else:
        run_network(forward, SAMPLES, 3, "it", quantised=False)


def test_probabilities_that_far_brighter_images_break_stay_refused() -> None:
    def forward(images: Array) -> Array:
        finite = np.where(np.abs(images).max() > 100, np.float32("nan"), np.float32(1))
        return softmax(images.mean((2, 3)) + np.arange(3, dtype=np.float32)) * finite

    with pytest.raises(NetworkError, match="gives probabilities"):
        run_network(forward, SAMPLES, 3, "it", quantised=False)


def test_the_samples_differ_as_photographs_do() -> None:
    deviations = SAMPLES.images.std((1, 2, 3))
    assert len(SAMPLES.images) == len(SAMPLES.names) == 8
    assert (
        deviations[SAMPLES.names.index("a white image")]
        == deviations[SAMPLES.names.index("a black image")]
        == 0
    )
    assert np.ptp(SAMPLES.images.mean((1, 2, 3))) > 3
