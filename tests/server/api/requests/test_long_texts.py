"""Long texts in JSON, which are read in pieces: as a JSON parser reads them, and with the same strictness."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve_server.api.requests import long_texts
from coserve_server.api.requests.long_texts import LongTexts
from coserve_server.errors import BadBodyError, BodyTooLargeError
from tests.server.api.application import INFER, Server, error
from tests.server.fake_engine import ReadingEngine, ensemble, png

IMAGE = base64.b64encode(png()).decode()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the tests' texts for long ones."""
    monkeypatch.setattr(long_texts, "MIN_BYTES", 10)
    monkeypatch.setattr(long_texts, "_PIECE_BYTES", 8)


def read(body: bytes) -> Any:
    """Return the JSON, with its long texts put back as they are read; others than ASCII are refused later."""
    texts = LongTexts(body, 4)

    def put_back(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put_back(one) for key, one in value.items()}
        if isinstance(value, list):
            return [put_back(one) for one in value]
        return "".join(texts.read(value)) if isinstance(value, str) else value

    return put_back(json.loads(texts.rest))


ASCII = st.text(st.sampled_from('ab"\\/\n\t\u007f{}[],: '), max_size=60)
VALUES = st.recursive(
    ASCII | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(ASCII, inner, max_size=5),
    max_leaves=20,
)


def escaped(text: str) -> str:
    return json.dumps("".join(f"~{ord(letter):04x}" for letter in text)).replace("~", "\\u")


@given(VALUES, st.sampled_from([None, 1]))
def test_nothing_is_changed(value: Any, indent: int | None) -> None:
    assert read(json.dumps(value, indent=indent).encode()) == value


@given(st.lists(ASCII, min_size=1, max_size=4))
def test_escapes_are_not_divided(texts: list[str]) -> None:
    mixed = [f"{escaped(text)[:-1]}{json.dumps(text)[1:]}" for text in texts]
    assert read(f"[{','.join(mixed)}]".encode()) == [text * 2 for text in texts]


def test_only_elements_of_arrays_are_cut_out() -> None:
    body = json.dumps({"a" * 99: "b" * 99, "c": ["d" * 99, "short", ["e" * 99]]}).encode()
    rest = json.loads(LongTexts(body, 1).rest)
    assert rest["a" * 99] == "b" * 99
    assert rest["c"][1] == "short"
    assert "d" * 99 not in str(rest)
    assert "e" * 99 not in str(rest)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b'["' + b"a" * 99, "a text has no end"),
        (b'["' + b"a" * 99 + b'\\"', "a text has no end"),
        (b'["' + b"a" * 99 + b'\n"]', "not JSON: control character"),
        (b'["' + b"a" * 99 + b'\\x"]', "not JSON: invalid escape"),
        (b'["' + b"a" * 99 + b'\\u00"]', "not JSON"),
        (b'["a' + b"\\" * 2000 + b'"]', "1000 backslashes in a row"),
    ],
)
def test_broken_texts(body: bytes, fault: str) -> None:
    with pytest.raises(BadBodyError, match=fault):
        read(body)


def test_texts_have_a_limit() -> None:
    fitting = b"[%b]" % b",".join([b'""'] * (2 * (4 + long_texts.SPARE_VALUES) - 1))
    LongTexts(fitting, 4)
    for body in (fitting.replace(b"[", b'["","",'), b'["%b"]' % (b'\\"' * 5000)):
        with pytest.raises(BodyTooLargeError, match="far more than 4 values"):
            LongTexts(body, 4)


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(ReadingEngine(ensemble()), max_images=4)


@pytest.mark.parametrize(
    "text", [f'"{IMAGE}"', escaped(IMAGE), '"' + IMAGE.replace("/", "\\/") + '\\n"'], ids=str.__len__
)
def test_images_may_be_written_in_any_way(server: Server, text: str) -> None:
    """PHP's json_encode, for one, escapes every slash."""
    headers = {"Content-Type": "application/json"}
    classified = server.ask(
        "POST", "/v1/classify", content=f'{{"images": [{text}, {text}]}}', headers=headers
    )
    assert classified.status_code == 200, classified.text
    tensor = f'{{"name": "images", "datatype": "BYTES", "shape": [2], "data": [{text}, {text}]}}'
    response = server.infer(content=f'{{"inputs": [{tensor}]}}'.encode())
    assert response.status_code == 200, response.text
    first, second = classified.json()["results"]
    logits = [row["logit"] for row in sorted(first["predictions"], key=lambda row: row["class_id"])]
    assert response.json()["outputs"][0]["data"] == pytest.approx(logits * 2)
    assert first["predictions"] == second["predictions"]


def test_a_long_text_that_is_no_base64_says_which(server: Server) -> None:
    for text, fault in (("a*" * 50, "image 1: not base64"), ("äöü" * 50, "other characters than ASCII")):
        content = json.dumps({"images": [IMAGE, text]}, ensure_ascii=False).encode()
        response = server.ask(
            "POST", "/v1/classify", content=content, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400
        assert fault in response.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [b"[%b]" % (b" " * 2**21), b"[%b]" % (b"1" * 2**21), b'{"%b":1}' % (b"k" * 2**21)],
    ids=["spaces", "digits", "key"],
)
def test_other_json_has_a_limit(server: Server, body: bytes) -> None:
    response = server.ask("POST", "/v1/classify", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert "bytes beside its images and numbers" in response.json()["detail"]
    assert "bytes beside its images and numbers" in error(server.ask("POST", INFER, content=body), 413)
