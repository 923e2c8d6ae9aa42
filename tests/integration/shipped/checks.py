"""Compare a server's answers for labelled photographs with what its ensemble's provenance records."""

import math
from collections import Counter
from itertools import combinations
from typing import Any

from coserve_client import Client
from tests.integration.shipped.photographs import RECOLOURED, Answers, Photograph, classify


def check_accuracy(answers: Answers, provenance: dict[str, Any]) -> None:
    recorded = provenance["accuracy"]["ensemble"]["top1"]
    _at_least_recorded("the ensemble", answers.labels, answers.predicted, recorded)


def check_members(answers: Answers, provenance: dict[str, Any]) -> None:
    """Check each member by itself: the others hide it in the mean."""
    members = zip(answers.members_predicted, provenance["accuracy"]["members"], strict=True)
    for index, (predicted, recorded) in enumerate(members):
        _at_least_recorded(f"member {index}", answers.labels, predicted, recorded["top1"])


def _at_least_recorded(who: str, labels: list[str], predicted: list[str], recorded: float) -> None:
    """Allow three standard errors of a binomial share."""
    count = len(labels)
    right = sum(label == answer for label, answer in zip(labels, predicted, strict=True))
    least = count * (recorded - 3 * math.sqrt(recorded * (1 - recorded) / count))
    assert right >= least, f"{who} is right {right} times of {count}, at least {least:.1f} expected"


def check_labels(answers: Answers) -> None:
    """Check that no two labels are exchanged: with them exchanged, fewer answers are right."""
    count = Counter(zip(answers.labels, answers.predicted, strict=True))
    for one, other in combinations(sorted(set(answers.labels)), 2):
        right = count[one, one] + count[other, other]
        exchanged = count[one, other] + count[other, one]
        assert right > exchanged, f"{one} and {other}: {right} right, {exchanged} with their labels exchanged"


def check_colours(client: Client, model: str, photographs: list[Photograph]) -> None:
    """Check that photographs are likelier than recoloured copies.

    An ensemble that exchanges channels or scales pixels wrongly does better on the copies that
    undo it. Every second photograph is enough, since each is compared with its own copies.
    """
    some = photographs[::2]
    nll = classify(client, model, some).nll
    copies = {
        name: classify(client, model, [photograph.recoloured(change) for photograph in some]).nll
        for name, change in RECOLOURED.items()
    }
    likelier = [name for name, of_copies in copies.items() if of_copies <= nll]
    assert not likelier, f"{', '.join(likelier)}: likelier than the photographs ({nll:.3f}): {copies}"
