"""The shipped ensembles classify photographs over HTTP as well as their provenance records."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coserve_client import Client, Model
from tests.integration.conftest import Serve
from tests.integration.shipped.checks import check_accuracy, check_colours, check_labels, check_members
from tests.integration.shipped.photographs import Answers, Photograph, classify, read_photographs

REPOSITORY = Path(__file__).parents[3] / "model_repository"
ENSEMBLES = sorted(file.parent.name for file in REPOSITORY.glob("*/labels.txt"))


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    return read_photographs()


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[Client]:
    with Client(serve(REPOSITORY).url) as client:
        yield client


@pytest.fixture(scope="module", params=ENSEMBLES)
def model(request: pytest.FixtureRequest, client: Client) -> Model:
    return client.model(request.param)


@pytest.fixture(scope="module")
def answers(client: Client, model: Model, photographs: list[Photograph]) -> Answers:
    return classify(client, model.name, photographs)


def test_every_shipped_ensemble_is_served(client: Client) -> None:
    assert sorted(model.name for model in client.models()) == ENSEMBLES


def test_labels_are_the_photographs_classes(model: Model, photographs: list[Photograph]) -> None:
    """Each class has as many photographs; an ensemble of other classes needs photographs of its own."""
    assert len(photographs) == 100
    assert sorted(10 * list(model.labels)) == sorted(photograph.label for photograph in photographs)
    assert (REPOSITORY / model.name / "labels.txt").read_text("utf-8").splitlines() == list(model.labels)


def test_accuracy(answers: Answers, model: Model) -> None:
    check_accuracy(answers, model.provenance)


def test_accuracy_of_members(answers: Answers, model: Model) -> None:
    check_members(answers, model.provenance)


def test_labels_are_not_exchanged(answers: Answers) -> None:
    check_labels(answers)


def test_colours(client: Client, model: Model, photographs: list[Photograph]) -> None:
    check_colours(client, model.name, photographs)
