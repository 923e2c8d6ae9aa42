import re
from pathlib import Path

import pytest

from coserve_server.configuration import describe, find_faults, resolve
from coserve_server.errors import SettingsError
from coserve_server.settings import Settings, load_settings
from tests.server.onnx_repository import write_repository

PAGE = Path(__file__).parents[2] / "docs/configuration.md"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "coserve.toml"


def test_arguments_win_over_the_environment_and_this_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('repository = "a"\nport = 1\nmax_images = 1\nmax_requests = 1\nserve_members = true\n')
    monkeypatch.setenv("COSERVE_PORT", "2")
    monkeypatch.setenv("COSERVE_MAX_IMAGES", "2")
    read = load_settings(file, port=3, serve_members=False, max_requests=None)
    assert (read.port, read.max_images, read.max_requests) == (3, 2, 1)
    assert (read.repository, read.serve_members) == (Path("a"), False)
    sources = {one.name: (one.value, one.source) for one in resolve(file)}
    assert sources["port"] == (2, "environment")
    assert sources["max_requests"] == (1, "file")
    assert sources["host"] == ("127.0.0.1", "default")


def test_lists_are_lists_in_the_file_and_separated_by_commas_elsewhere(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('repository = "a"\ncors_origins = ["https://a.example", "http://localhost:3000"]\n')
    assert load_settings(file).cors_origins == ("https://a.example", "http://localhost:3000")
    monkeypatch.setenv("COSERVE_CORS_ORIGINS", "https://b.example, https://c.example:8443")
    assert load_settings(file).cors_origins == ("https://b.example", "https://c.example:8443")


def test_secrets_are_masked(file: Path) -> None:
    file.write_text('engine = "triton"\ntriton_url = "a:1"\ntriton_tls = true\ntriton_token = "hunter2"\n')
    assert "hunter2" not in repr(resolve(file))
    (token,) = (one for one in resolve(file) if one.name == "triton_token")
    assert (token.value, token.source) == ("**********", "file")


HOSTS = "host: other machines may reach {!r}, and anyone there could use the server; set api_keys_file "


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("prot = 1", ["prot: no setting has this name; the nearest is port"]),
        (
            "max_image = 1\n[server]\nport = 0",
            [
                "max_image: no setting has this name; the nearest is max_images",
                "server: no setting has this name; the nearest is serve_members",
            ],
        ),
        ("port = 70000", ["port: Input should be less than or equal to 65535"]),
        ('tls_key = "no.pem"', ["tls_key: Path does not point to a file"]),
        ('api_keys_file = "no.txt"', ["api_keys_file: Path does not point to a file"]),
        ('tls_key = "{file}"', ["tls_certificate and tls_key go together"]),
        (
            'tls_client_authorities = "{file}"',
            ["tls_certificate: tls_client_authorities and tls_key_password need it"],
        ),
        (
            'cors_origins = ["https://a.example/"]',
            ["cors_origins: 'https://a.example/' is neither an origin such as https://a.org nor *"],
        ),
    ],
)
def test_faults_are_one_line_each(file: Path, text: str, found: list[str]) -> None:
    text = text.replace("{file}", str(file))
    file.write_text(f'repository = "r"\n{text}\n')
    expected = [line.replace("{file}", str(file)) for line in found]
    assert list(find_faults(file)) == expected
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert caught.value.faults == expected


@pytest.mark.parametrize("content", [b"port =", b"port = 1\nport = 2", b"# \xff"])
def test_a_file_that_is_no_toml_is_one_line(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    (fault,) = find_faults(file)
    assert fault.startswith(f"{file} cannot be read: ")
    assert "\n" not in fault


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_public_address_needs_keys_or_a_word(host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(HOSTS.format(host))):
        load_settings(repository="r", host=host)
    assert load_settings(repository="r", host=host, allow_public=True).public
    keys = tmp_path / "keys"
    keys.touch()
    assert load_settings(repository="r", host=host, api_keys_file=keys).public


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_needs_nothing(host: str) -> None:
    assert not load_settings(repository="r", host=host).public


def test_what_the_file_names_is_checked_too(file: Path, tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "models", "pair")
    write_repository(folder, "broken")
    file.write_text(f'repository = "{folder}"\ndefault_model = "pair"\n')
    assert list(find_faults(file)) == []
    (folder / "broken_member0" / "1" / "model.onnx").unlink()
    (tmp_path / "keys").touch()
    lines = ('default_model = "cow"', f'api_keys_file = "{tmp_path / "keys"}"')
    lines += (f'tls_certificate = "{file}"', f'tls_key = "{file}"')
    file.write_text(f'repository = "{folder}"\n' + "\n".join(lines))
    tls, keys, member, default = find_faults(file)
    assert tls == f"tls_certificate: {file} has no certificate in PEM format"
    assert keys.startswith(f"api_keys_file: {tmp_path / 'keys'} has no key; make one")
    assert "broken_member0" in member
    assert default == "default_model: 'cow' is not served; choose from broken, pair"
    file.write_text(f'repository = "{tmp_path / "none"}"')
    assert list(find_faults(file)) == [f"{tmp_path / 'none'} is not a folder"]
    assert list(find_faults(tmp_path / "none.toml")) == [f"{tmp_path / 'none.toml'} is not a file"]


def test_the_page_lists_exactly_the_settings_there_are() -> None:
    header = "| setting | values | default | meaning |\n| --- | --- | --- | --- |\n"
    rows = (
        f"| `{one.name}` | {one.type} | {f'`{one.default}`' if one.default else ''} | {one.description} |\n"
        for one in describe()
    )
    table = header + "".join(rows)
    assert table in PAGE.read_text("utf-8"), f"docs/configuration.md needs this table:\n{table}"


def test_every_setting_is_described() -> None:
    described = describe()
    assert [one.name for one in described] == list(Settings.model_fields)
    assert all(len(one.description) > 10 for one in described)
