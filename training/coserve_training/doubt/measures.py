"""How much an ensemble doubts its answer to each image."""

import torch
from torch import Tensor

from coserve_training.errors import DataError

MEASURES = ("confidence", "entropy", "mutual_information", "disagreement", "max_logit", "energy")
"""Names of the measures, in the order in which they are reported."""
BLOCK = 8192
"""The largest number of images that are measured at once: it takes several copies of their logits."""


def measure_doubt(logits: Tensor) -> dict[str, Tensor]:
    """Measure the doubt about each image by the members' logits `[S, N, C]`.

    All measures `[N]` are float64, and higher for more doubt. p are the softmax of the mean logits, at
    temperature 1:

    - `confidence`: 1 - max p (Hendrycks & Gimpel, arXiv 1610.02136).
    - `entropy`: entropy of p, in nats.
    - `mutual_information`: H(mean of the members' probabilities) - mean of H(member's probabilities), in nats
      (BALD, arXiv 1112.5745). A reply of the server calls it `disagreement`. Several members only.
    - `disagreement`: fraction of the pairs of members that predict different classes. Several members only.
    - `max_logit`: minus the largest mean logit (arXiv 1911.11132).
    - `energy`: minus the logarithm of the sum of the exponentials of the mean logits (arXiv 2010.03759).

    Raises:
        DataError: if the logits do not have three dimensions, or there are none.
    """
    if logits.dim() != 3 or not logits.numel():
        raise DataError(f"logits must have the shape [members, images, classes], not {list(logits.shape)}")
    blocks = [_measure(block) for block in torch.split(logits, BLOCK, dim=1)]
    return {name: torch.cat([block[name] for block in blocks]) for name in MEASURES if name in blocks[0]}


def _measure(logits: Tensor) -> dict[str, Tensor]:
    logits = logits.double()
    mean = logits.mean(0)
    probabilities = mean.softmax(-1)
    measures = {
        "confidence": 1 - probabilities.amax(-1),
        "entropy": _entropy(probabilities),
        "max_logit": -mean.amax(-1),
        "energy": -mean.logsumexp(-1),
    }
    if len(logits) > 1:
        own = logits.softmax(-1)
        measures["mutual_information"] = (_entropy(own.mean(0)) - _entropy(own).mean(0)).clamp(min=0)
        measures["disagreement"] = _disagreeing_pairs(logits)
    return measures


def _entropy(probabilities: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(-1)


def _disagreeing_pairs(logits: Tensor) -> Tensor:
    members, _, classes = logits.shape
    votes = torch.nn.functional.one_hot(logits.argmax(-1), classes).sum(0)
    agreeing = (votes * (votes - 1)).sum(-1)
    return 1 - agreeing.double() / (members * (members - 1))
