"""The server's settings, read once at start from arguments, `COSERVE_…` variables and a TOML file."""

import difflib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from coserve_server.errors import SettingsError

Precision = Literal["fp32", "bf16"]
"""Precision in which fp32 networks are computed."""

MAX_PIXELS = 89_478_485
"""Above this, Pillow warns of a decompression bomb."""


def _check_addresses(text: str) -> str:
    for address in text.split(","):
        host, _, port = address.strip().rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(
                f"{address.strip()!r} is not HOST:PORT of Triton's gRPC service, such as 127.0.0.1:8001"
            )
    return text


def _split_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"https?://[^/\s,?#@]+", origin):
        raise ValueError(f"{origin!r} is neither an origin such as https://a.org nor *")
    return origin


def _check_distinct(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(numbers)) < len(numbers):
        raise ValueError("each number may be named once")
    return numbers


class Settings(BaseSettings):
    """The server's settings; arguments override environment variables, which override the file.

    The text below each setting is its description for users.
    """

    model_config = SettingsConfigDict(
        env_prefix="COSERVE_", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    repository: Path | None = None
    """Folder of the model repository, for the engines `onnxruntime` and `openvino`."""
    engine: Literal["onnxruntime", "openvino", "triton"] = "onnxruntime"
    """What runs the members: `onnxruntime` or `openvino` in this process, or Triton servers (`triton`)."""
    member_threads: int | None = Field(None, ge=1)
    """Threads per member in this process; by default the members share the cores equally."""
    max_batch_size: int | None = Field(None, ge=1)
    """Limit on the images per batch in this process, if it is below the repository's own limit."""
    pin_members: bool = True
    """Whether to pin each member in this process to cores of its own; no effect under a CPU quota."""
    gpus: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        NoDecode,
        BeforeValidator(_split_list),
        AfterValidator(_check_distinct),
    ] = ()
    """Numbers of GPUs, separated by commas, on which the engine `onnxruntime` places members in turn; by
    default members run on the CPU."""
    cuda_graphs: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        NoDecode,
        BeforeValidator(_split_list),
        AfterValidator(_check_distinct),
    ] = ()
    """Batch sizes, separated by commas, that members on `gpus` run as CUDA graphs, with one launch instead of
    one per kernel."""
    openvino_cache: Path | None = None
    """Folder where the engine `openvino` caches compiled networks for faster starts; created if missing."""
    openvino_precision: Precision = "fp32"
    """Precision in which `openvino` computes fp32 networks; not every processor supports `bf16`."""
    host: str = "127.0.0.1"
    """Address to listen on. An address that other machines can reach requires `api_keys_file`,
    `tls_client_authorities` or `allow_public`."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port to listen on; 0 picks a free one, which is printed."""
    allow_public: bool = False
    """Whether to serve a public address without authentication."""
    api_keys_file: FilePath | None = None
    """File of API keys, written by `coserve keys`; without it requests need no key."""
    tls_certificate: FilePath | None = None
    """PEM file of the server's certificate, with its intermediates; without it the server uses plain HTTP."""
    tls_key: FilePath | None = None
    """PEM file of the private key of `tls_certificate`."""
    tls_key_password: SecretStr | None = None
    """Password of `tls_key`, if it is encrypted."""
    tls_client_authorities: FilePath | None = None
    """PEM file of the certificate authorities that clients' certificates must come from (mutual TLS)."""
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_check_origin)], ...], NoDecode, BeforeValidator(_split_list)
    ] = ()
    """Origins, separated by commas, whose web pages may call the server from a browser; `*` for all."""
    repository_poll_ms: float = Field(1000, ge=0)
    """Time between checks of `repository` for changes to serve without a restart; 0 for no checks."""
    repository_control: bool = False
    """Whether clients may load and unload ensembles of `repository` over `/v2`."""
    drain_delay_ms: float = Field(0, ge=0)
    """Time after SIGTERM during which `/readyz` reports not ready but new requests are still served."""
    default_model: str | None = None
    """Ensemble for requests that name none; if only one ensemble is served, it is the default."""
    min_members: int | None = Field(None, ge=1)
    """Quorum: the number of members that must answer a request; by default, and in smaller ensembles, all."""
    deadline_ms: float = Field(10_000, gt=0)
    """Time limit for decoding, queueing and inference of a request; the request's header can shorten it."""
    upload_timeout_ms: float = Field(60_000, gt=0)
    """Time limit for receiving a request's body."""
    min_upload_rate: int = Field(1000, ge=0)
    """Minimum average rate of an upload, in bytes/s, after a grace period of 5 s; 0 for no minimum."""
    head_timeout_ms: float = Field(10_000, gt=0)
    """Time limit for receiving a request's headers, and for the first bytes of a new connection."""
    max_connections: int = Field(1000, ge=1)
    """Limit on open connections; more are refused."""
    max_requests: int = Field(64, ge=1)
    """Limit on concurrent classification requests, counted before their bodies are read; more are refused."""
    max_body_bytes: int = Field(32 * 2**20, ge=1)
    """Limit on the bytes in a request's body."""
    max_images: int = Field(64, ge=1)
    """Limit on the images in a request."""
    max_pixels: int = Field(50_000_000, ge=1, le=MAX_PIXELS)
    """Limit on the pixels of an image, checked in its header before decoding and again before resizing."""
    serve_members: bool = False
    """Whether requests may also name a single member, to run it alone."""
    triton_url: Annotated[str, AfterValidator(_check_addresses)] | None = None
    """`HOST:PORT` of each Triton server's gRPC service, separated by commas."""
    triton_refresh_ms: float = Field(500, ge=10)
    """Time between checks of what each Triton server has loaded."""
    triton_shared_memory_mib: int = Field(0, ge=0)
    """Shared memory for sending images to Triton servers on this machine, in MiB; 0 for none."""
    triton_tls: bool = False
    """Whether to encrypt the connections to Triton."""
    triton_root_certificates: FilePath | None = None
    """PEM file of certificate authorities to trust for Triton; by default gRPC's own list."""
    triton_client_certificate: FilePath | None = None
    """PEM file of the client certificate that the server presents to Triton."""
    triton_client_key: FilePath | None = None
    """PEM file of the private key of `triton_client_certificate`."""
    triton_token: SecretStr | None = None
    """Bearer token sent with every call to Triton; requires `triton_tls`."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    """Least severe level of messages to log."""
    log_format: Literal["text", "json"] = "text"
    """Format of the log: lines for people, or one JSON object per line."""
    access_log: bool = True
    """Whether to log every request, at level `info`."""
    otlp_endpoint: AnyHttpUrl | None = None
    """Base URL of the OpenTelemetry collector to send traces to, over OTLP/HTTP; without it there are no
    traces. Needs the extra `otel`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of settings, the strongest first."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def public(self) -> bool:
        """Return whether other machines may reach the address; any name but localhost counts as reachable."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def triton_addresses(self) -> list[str]:
        """Return HOST:PORT of each Triton server."""
        return [address.strip() for address in (self.triton_url or "").split(",")]

    @model_validator(mode="after")
    def _check_engine(self) -> "Settings":
        if self.engine == "triton":
            if self.repository is not None:
                raise ValueError("repository: engine triton serves what Triton has loaded; leave it out")
            if self.triton_url is None:
                raise ValueError("triton_url: engine triton needs the address of a Triton server")
        else:
            if self.repository is None:
                raise ValueError(f"repository: engine {self.engine} needs the folder of a model repository")
            if self.triton_url is not None:
                raise ValueError("triton_url: only engine triton uses it; add --engine triton")
        if self.engine != "onnxruntime" and self.gpus:
            raise ValueError("gpus: only engine onnxruntime uses them")
        if self.cuda_graphs and not self.gpus:
            raise ValueError("cuda_graphs: only members on gpus run as CUDA graphs")
        if self.gpus and self.member_threads is not None:
            raise ValueError("member_threads: members on gpus take no share of the cores")
        if self.engine != "openvino":
            if self.openvino_cache is not None:
                raise ValueError("openvino_cache: only engine openvino uses it")
            if self.openvino_precision != "fp32":
                raise ValueError("openvino_precision: only engine openvino uses it")
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> "Settings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_certificate is None and (self.tls_client_authorities or self.tls_key_password):
            raise ValueError("tls_certificate: tls_client_authorities and tls_key_password need it")
        return self

    @model_validator(mode="after")
    def _check_authentication(self) -> "Settings":
        if self.public and not (self.api_keys_file or self.tls_client_authorities or self.allow_public):
            raise ValueError(
                f"host: other machines may reach {self.host!r}, and anyone there could use the server; set "
                "api_keys_file (see coserve keys create), or allow_public (--allow-public) if that is wanted"
            )
        return self

    @model_validator(mode="after")
    def _check_triton_tls(self) -> "Settings":
        certificates = (
            self.triton_root_certificates,
            self.triton_client_certificate,
            self.triton_client_key,
            self.triton_token,
        )
        if not self.triton_tls and any(value is not None for value in certificates):
            raise ValueError("triton_tls: certificates and the token need TLS; set it to true")
        if (self.triton_client_certificate is None) != (self.triton_client_key is None):
            raise ValueError("triton_client_certificate and triton_client_key go together")
        return self


def load_settings(file: Path | None = None, /, **arguments: object) -> Settings:
    """Read the settings; arguments that are None are ignored.

    Args:
        file: TOML file whose keys are settings.

    Raises:
        SettingsError: settings are unknown, missing or out of range; the error names all of them.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if file is not None and not file.is_file():
        raise SettingsError([f"{file} is not a file"])
    try:
        return _settings_class(file)(**given)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        faults = [_describe_fault(one["type"], one["loc"], one["msg"]) for one in error.errors()]
        raise SettingsError(faults) from error
    # Errors in TOML syntax and in UTF-8 are ValueErrors.
    except (ValueError, OSError) as error:
        if file is None:
            raise
        raise SettingsError([f"{file} cannot be read: {error}"]) from error


def _settings_class(file: Path | None) -> type[Settings]:
    """Return the settings with a file as last source; pydantic-settings takes it only from the class."""

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    return FromFile if file else Settings


def _describe_fault(kind: str, location: tuple[int | str, ...], message: str) -> str:
    """Write a fault that pydantic found as `setting: what is wrong`."""
    name = str(location[0]) if location else ""
    if kind == "extra_forbidden":
        (nearest,) = difflib.get_close_matches(name, Settings.model_fields, 1, cutoff=0)
        return f"{name}: no setting has this name; the nearest is {nearest}"
    return (f"{name}: " if name else "") + message.removeprefix("Value error, ")
