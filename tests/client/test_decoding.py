import copy
from collections.abc import Callable
from typing import Any

import pytest

from coserve_client import Member, Prediction, ProtocolError, Reply, Uncertainty
from coserve_client.decoding import decode

Make = Callable[..., dict[str, Any]]


def test_builds_a_whole_reply(reply: Make) -> None:
    built = decode(Reply, reply("cat.jpg"), "reply")

    assert (built.model, built.version, built.degraded, built.overlap) == ("E", "1", False, 1.93)
    assert built.measured_top1 == 0.93
    assert built.members[0] == Member("E_member0", True, "cpu:0", 0.02, 17.0, None)
    assert built.timings_ms.total == 20.0
    assert built.results[0].filename == "cat.jpg"
    assert built.results[0].predictions == (Prediction("cat", 3, 0.93, 7.1),)
    assert built.results[0].uncertainty == Uncertainty(entropy=0.3, disagreement=0.1)
    assert built.missing == ()


def test_reads_member_predictions_and_missing_members(reply: Make) -> None:
    document = reply("cat.jpg")
    result = document["results"][0]
    result["member_predictions"] = {"E_member0": result["predictions"]}
    document["members"][1].update(used=False, error="out of memory", start_ms=None, end_ms=None)

    built = decode(Reply, document, "reply")

    assert built.results[0].member_predictions == {"E_member0": built.results[0].predictions}
    assert [member.name for member in built.missing] == ["E_member1"]


def test_ignores_keys_that_a_newer_server_adds(reply: Make) -> None:
    newer = copy.deepcopy(reply("cat.jpg"))
    newer["new"] = {"x": 1}
    newer["results"][0]["predictions"][0]["new"] = {"x": 1}
    assert decode(Reply, newer, "reply") == decode(Reply, reply("cat.jpg"), "reply")


def test_an_older_server_sends_no_prediction_sets(reply: Make) -> None:
    older = decode(Reply, reply("cat.jpg"), "reply")
    assert (older.prediction_sets, older.results[0].prediction_set) == (None, None)
    newer = reply("cat.jpg") | {"prediction_sets": None}
    newer["results"][0]["prediction_set"] = None
    assert decode(Reply, newer, "reply") == older


def test_an_empty_set_is_not_a_missing_one(reply: Make) -> None:
    document = reply("cat.jpg")
    document["results"][0]["prediction_set"] = []
    assert decode(Reply, document, "reply").results[0].prediction_set == ()


def test_names_the_missing_key(reply: Make) -> None:
    document = reply("cat.jpg")
    del document["results"][0]["predictions"][0]["logit"]
    with pytest.raises(ProtocolError, match=r"lacks reply\.results\[0\]\.predictions\[0\]\.logit"):
        decode(Reply, document, "reply")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", 3, "reply.model in the server's response is int, expected str"),
        ("degraded", "no", "reply.degraded in the server's response is str, expected bool"),
        ("overlap", True, "reply.overlap in the server's response is bool, expected float"),
        ("overlap", 10**400, "reply.overlap in the server's response is too large a number"),
        ("members", {}, "reply.members in the server's response is dict, expected list"),
        ("results", [None], "reply.results[0] in the server's response is NoneType, expected dict"),
    ],
)
def test_names_the_value_of_the_wrong_type(reply: Make, key: str, value: object, message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(Reply, reply("cat.jpg") | {key: value}, "reply")
    assert str(caught.value).startswith(message)
