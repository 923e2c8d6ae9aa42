from typing import Any

import pytest

from coserve_server.errors import SettingsError
from coserve_server.settings import Settings, load_settings
from coserve_server.settings.section import LONGEST_MS


def test_settings_come_from_arguments_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSERVE_PORT", "7000")
    monkeypatch.setenv("COSERVE_DEADLINE_MS", "50")
    read = load_settings(repository="models", port=9000, deadline_ms=None)
    assert (read.port, read.deadline_ms) == (9000, 50)


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name.endswith("_ms")])
def test_times_have_a_limit(name: str) -> None:
    load_settings(repository="r", **{name: LONGEST_MS})
    with pytest.raises(SettingsError, match=f"{name}: Input should be less than or equal to {LONGEST_MS}"):
        load_settings(repository="r", **{name: 1e308})


TRITON = {"engine": "triton", "triton_url": "a:1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {},
            "repository: engine onnxruntime needs the folder of a model repository "
            "(--repository or COSERVE_REPOSITORY)",
        ),
        ({"repository": "r", "port": 70000}, "port: Input should be less than or equal to 65535"),
        (
            {"repository": "r", "engine": "magic"},
            "engine: Input should be 'onnxruntime', 'openvino' or 'triton'",
        ),
        ({"repository": "r", "min_members": 0}, "min_members: Input should be greater than or equal to 1"),
        ({"repository": "r", "triton_url": "a:1"}, "triton_url: only engine triton uses it"),
        ({"engine": "triton"}, "triton_url: engine triton needs the address of a Triton server"),
        (TRITON | {"repository": "r"}, "repository: engine triton serves what Triton has loaded"),
        (TRITON | {"triton_url": "http://a:1"}, "triton_url: 'http://a:1' is not HOST:PORT"),
        (TRITON | {"triton_url": "a:1,b"}, "triton_url: 'b' is not HOST:PORT"),
        (TRITON | {"triton_url": "a:0"}, "triton_url: 'a:0' is not HOST:PORT"),
        (TRITON | {"triton_url": ""}, "triton_url: '' is not HOST:PORT"),
        (TRITON | {"triton_token": "x"}, "triton_tls: certificates and the token need TLS"),
        (TRITON | {"triton_root_certificates": "no.pem"}, "triton_root_certificates: no.pem cannot be read"),
        (
            TRITON | {"triton_tls": True, "triton_client_key": __file__},
            "triton_client_certificate and triton_client_key go together",
        ),
    ],
)
def test_wrong_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**arguments)
    assert str(caught.value).startswith(f"settings: {message}")


def test_triton_addresses() -> None:
    read = load_settings(engine="triton", triton_url="a.example:8001, [::1]:8001")
    assert read.triton_addresses == ["a.example:8001", "[::1]:8001"]


@pytest.mark.parametrize("path", ["", "/images", "/a/b-c.d", "/v1x/docs"])
def test_path_prefixes(path: str) -> None:
    assert load_settings(repository="unused", root_path=path).root_path == path


@pytest.mark.parametrize(
    "path", ["/", "images", "/images/", "/a//b", "/a b", "/a?b", "/\N{LATIN SMALL LETTER E WITH ACUTE}"]
)
def test_what_is_not_a_path_prefix(path: str) -> None:
    with pytest.raises(SettingsError, match=r"root_path: .* is not a path prefix such as /images"):
        load_settings(repository="unused", root_path=path)


@pytest.mark.parametrize("path", ["/v1", "/v2/models", "/healthz", "/docs", "/metrics/a"])
def test_a_path_prefix_is_not_like_the_server_s_own_paths(path: str) -> None:
    with pytest.raises(SettingsError, match="begins like a path of the server itself"):
        load_settings(repository="unused", root_path=path)
