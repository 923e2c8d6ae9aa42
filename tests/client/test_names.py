"""Names and versions of models that lead to no model are refused before anything is sent."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from coserve_client import InputError

Ask = Callable[..., Any]

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "model": (),
    "metadata": (),
    "infer": (np.zeros((1, 3, 2, 2)),),
    "ready": (),
}
WRONG = [
    ("", "must not be empty"),
    (".", r"folder in the model repository, which '\.' cannot be"),
    ("..", "folder in the model repository"),
    ("E/versions/2", "folder in the model repository"),
    ("\udcff", "has characters that cannot be sent"),
    (2, "must be a string, not int"),
    (b"E", "must be a string, not bytes"),
]


def unused(request: httpx.Request) -> httpx.Response:
    raise AssertionError(request.url)


@pytest.mark.parametrize(("name", "message"), WRONG)
def test_refuses_a_name_or_version_that_no_model_can_have(ask: Ask, name: Any, message: str) -> None:
    for method, arguments in ARGUMENTS.items():
        with pytest.raises(InputError, match=f"the name of a model .*{message}"):
            ask(unused, method, name, *arguments)
        with pytest.raises(InputError, match=f"the version of a model .*{message}"):
            ask(unused, method, "E", *arguments, version=name)
    with pytest.raises(InputError, match=f"the name of a model .*{message}"):
        ask(unused, "classify", b"x", model=name)
    with pytest.raises(InputError, match=f"the version of a model .*{message}"):
        ask(unused, "classify", b"x", version=name)


@pytest.mark.parametrize("method", ["model", "metadata", "infer"])
def test_methods_about_one_model_need_its_name(ask: Ask, method: str) -> None:
    with pytest.raises(InputError, match="the name of a model must be a string, not NoneType"):
        ask(unused, method, None, *ARGUMENTS[method])


def test_a_version_alone_is_not_taken_for_the_whole_server(ask: Ask) -> None:
    with pytest.raises(InputError, match="a version needs the name of its model"):
        ask(unused, "ready", version="2")
