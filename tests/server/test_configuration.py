import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coserve_server.configuration import describe, find_faults, resolve
from coserve_server.errors import SettingsError
from coserve_server.settings import Settings, load_settings
from coserve_server.settings.load import find_ignored_variables
from tests.server.onnx_repository import write_repository


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("COSERVE_"):
            monkeypatch.delenv(name)


PAGE = Path(__file__).parents[2] / "docs/reference/configuration.md"


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


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("http://user:hunter2@host:4318/a@b", "http://**********@host:4318/a@b"),
        ("http://host:4318/a@b", "http://host:4318/a@b"),
    ],
)
def test_passwords_in_addresses_are_masked(file: Path, endpoint: str, shown: str) -> None:
    file.write_text(f'repository = "a"\notlp_endpoint = "{endpoint}"\n')
    (one,) = (one for one in resolve(file) if one.name == "otlp_endpoint")
    assert one.value == shown


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
        ('tls_key = "no.pem"', ["tls_key: no.pem cannot be read: No such file or directory"]),
        ('api_keys_file = "no.txt"', ["api_keys_file: no.txt cannot be read: No such file or directory"]),
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


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"port =", "is not TOML: "),
        (b"port = 1\nport = 2", "is not TOML: "),
        (b"a = " + b"[" * 20000, "is not TOML: "),
        (b"port = " + b"9" * 5000, "is not TOML: "),
        (b"# \xff", "cannot be read: Not UTF-8: "),
        ("port = 1".encode("utf-16"), "cannot be read: Not UTF-8: "),
        (b"#" * (2**20 + 1), "cannot be read: Larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_not_toml_is_an_error_of_one_line(file: Path, content: bytes, fault: str) -> None:
    file.write_bytes(content)
    (found,) = find_faults(file)
    assert found.startswith(f"{file} {fault}")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("workers = 2\nmax_requests = 1", "workers: 2 workers cannot share max_requests, which is 1"),
        ("workers = 4096", "workers: "),
        ("gpus = [4096]", "gpus: "),
    ],
)
def test_what_the_machine_does_not_have_is_a_fault(file: Path, tmp_path: Path, text: str, fault: str) -> None:
    write_repository(tmp_path / "models")
    file.write_text(f'repository = "{tmp_path / "models"}"\n{text}\n')
    (found,) = find_faults(file)
    assert found.startswith(fault)


def test_an_unreadable_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    reasons = {
        "": "Is a directory",
        "pipe": "Not a regular file",
        "loop": "Too many levels of symbolic links",
    }
    for name, reason in reasons.items():
        assert list(find_faults(tmp_path / name)) == [f"{tmp_path / name} cannot be read: {reason}"]
    (fault,) = find_faults(Path("a\0b"))
    # The words differ between versions of Python.
    assert fault.startswith("a\0b cannot be read: ")
    assert "embedded null" in fault


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "any.toml"
    file.write_bytes(content)
    for fault in find_faults(file):
        assert "\n" not in fault


def test_windows_byte_order_mark_and_line_ends(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbfrepository = "a"\r\nport = 1\r\n')
    assert load_settings(file).port == 1


LINKS = {
    "COSERVE_PORT": "tcp://10.96.12.7:8000",
    "COSERVE_PORT_8000_TCP": "tcp://10.96.12.7:8000",
    "COSERVE_PORT_8000_TCP_ADDR": "10.96.12.7",
    "COSERVE_PORT_8000_TCP_PORT": "8000",
    "COSERVE_PORT_8000_TCP_PROTO": "tcp",
    "COSERVE_SERVICE_HOST": "10.96.12.7",
    "COSERVE_SERVICE_PORT": "8000",
    "COSERVE_SERVICE_PORT_HTTP": "8000",
    "COSERVE_TRITON_PORT": "udp://[fd00::7]:8001",
    "COSERVE_MAX_SERVICE_HOST": "10.96.12.8",
}


def test_variables_of_kubernetes_services_are_no_settings(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    file.write_text('repository = "a"\nport = 1')
    assert load_settings(repository="a").port == 8000
    assert load_settings(file).port == 1
    assert {one.name: one.source for one in resolve(file)}["port"] == "file"
    (note,) = find_ignored_variables()
    assert all(name in note for name in LINKS)


def test_only_a_port_may_be_a_service_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSERVE_TRITON_URL", "tcp://triton:8001")
    with pytest.raises(SettingsError, match=r"triton_url: .* is not HOST:PORT"):
        load_settings(engine="triton")
    monkeypatch.setenv("COSERVE_PORT", "http")
    with pytest.raises(SettingsError, match="port: Input should be a valid integer"):
        load_settings(repository="a")


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIN_MEMBERS", "DEFAULT_MODEL", "PORT", "API_KEYS_FILE", "GPUS", "TRITON_URL"):
        monkeypatch.setenv(f"COSERVE_{name}", "")
    read = load_settings(repository="a")
    assert read == Settings(repository=Path("a"))
    assert (read.port, read.min_members, read.default_model) == (8000, None, None)


def test_a_variable_that_is_no_setting_is_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("COSERVE_MAX_IMAGE", "COSERVE_HOSTNAME", "COSERVE_API_KEY", "COSERVE_URL", "COSERVE_CONFIG")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    for name in (*names, "COSERVE_MAX_IMAGES"):
        monkeypatch.setenv(name, "1")
    assert find_ignored_variables() == [
        "FORWARDED_ALLOW_IPS is ignored; COSERVE_TRUSTED_PROXIES names the proxies to trust",
        "COSERVE_HOSTNAME: no setting has this name; the nearest is COSERVE_HOST",
        "COSERVE_MAX_IMAGE: no setting has this name; the nearest is COSERVE_MAX_IMAGES",
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_public_address_needs_keys_or_a_word(host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(HOSTS.format(host))):
        load_settings(repository="r", host=host)
    assert load_settings(repository="r", host=host, allow_public=True).public
    keys = tmp_path / "keys"
    keys.touch()
    assert load_settings(repository="r", host=host, api_keys_file=keys).public


def test_proxies_are_addresses_and_networks() -> None:
    proxies = ("10.0.0.7", "10.0.0.0/8", "fd00::/8", "*")
    assert load_settings(repository="r", trusted_proxies=",".join(proxies)).trusted_proxies == proxies
    for wrong in ("proxy.example", "10.0.0.1/8", "300.1.1.1"):
        with pytest.raises(SettingsError, match=f"'{wrong}' is neither an address such as"):
            load_settings(repository="r", trusted_proxies=wrong)


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
    missing = tmp_path / "none.toml"
    assert list(find_faults(missing)) == [f"{missing} cannot be read: No such file or directory"]


def test_the_page_lists_exactly_the_settings_there_are() -> None:
    header = "| setting | values | default | meaning |\n| --- | --- | --- | --- |\n"
    rows = (
        f"| `{one.name}` | {one.type} | {f'`{one.default}`' if one.default else ''} | {one.description} |\n"
        for one in describe()
    )
    table = header + "".join(rows)
    assert table in PAGE.read_text("utf-8"), f"docs/reference/configuration.md needs this table:\n{table}"


def test_every_setting_is_described() -> None:
    described = describe()
    assert [one.name for one in described] == list(Settings.model_fields)
    assert all(len(one.description) > 10 for one in described)
