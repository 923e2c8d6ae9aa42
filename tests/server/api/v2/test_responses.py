"""Large responses of `/v2` and gRPC: written in pieces, and limited."""

from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from coserve_server.api import json_pieces
from tests.server.api.application import IMAGES, INFER, LOGITS, Server, binary, document, error
from tests.server.api.grpc.calls import Served, failure, request, run
from tests.server.fake_engine import ReadingEngine, ensemble


def classifying(count: int) -> dict[str, Any]:
    return {"outputs": [{"name": "logits", "parameters": {"classification": count}}]}


def test_long_tensors_are_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pieces, "PIECE_VALUES", 4)
    response = Server(ReadingEngine(ensemble())).infer(json=document(binary=False)).json()
    (output,) = response["outputs"]
    assert output == {
        "name": "logits",
        "datatype": "FP32",
        "shape": list(LOGITS.shape),
        "data": LOGITS.ravel().tolist(),
    }


def test_classes_in_an_answer_have_a_limit() -> None:
    # 9 classes are more than the model has, so each image has 2 predictions.
    server = Server(ReadingEngine(ensemble()), max_predictions=2 * len(IMAGES) - 1)
    expected = "the answer would have up to 6 predictions, 2 for each image; at most 5 are allowed"
    for arguments in ({"json": document(binary=False, **classifying(9))}, binary(**classifying(9))):
        assert expected in error(server.ask("POST", INFER, **arguments), 400)
    assert server.engine.given == []
    server.infer(json=document(IMAGES[:2], binary=False, **classifying(9)))
    # Logits are no predictions: their number is the images' times the classes'.
    server.infer(json=document(np.concatenate([IMAGES, IMAGES]), binary=False))


def test_classes_in_an_answer_over_grpc_have_the_same_limit() -> None:
    async def test(served: Served) -> None:
        asked = request()
        asked.outputs.add(name="logits").parameters["classification"].int64_param = 9
        refused = await failure(served.stub.ModelInfer(asked))
        assert refused.code() is StatusCode.INVALID_ARGUMENT
        assert "at most 5 are allowed" in str(refused.details())

    run(ReadingEngine(ensemble()), test, max_predictions=2 * len(IMAGES) - 1)
