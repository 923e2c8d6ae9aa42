"""What an operator may set, read once at start from arguments, `COSERVE_…` variables and a TOML file."""

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
"""What networks in fp32 are computed in."""

MAX_PIXELS = 89_478_485
"""From here on Pillow itself suspects a decompression bomb."""


def _check_addresses(text: str) -> str:
    for address in text.split(","):
        host, _, port = address.strip().rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(
                f"{address.strip()!r} is not HOST:PORT of Triton's gRPC service, such as 127.0.0.1:8001"
            )
    return text


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"https?://[^/\s,?#@]+", origin):
        raise ValueError(f"{origin!r} is not a web page's origin, such as https://a.org, or *")
    return origin


def _distinct(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(numbers)) < len(numbers):
        raise ValueError("each number may be named once")
    return numbers


class Settings(BaseSettings):
    """The server's settings; arguments win over environment variables, and these over the file.

    The text below each is its description for users.
    """

    model_config = SettingsConfigDict(
        env_prefix="COSERVE_", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    repository: Path | None = None
    """Folder of the model repository that the engines `onnxruntime` and `openvino` serve."""
    engine: Literal["onnxruntime", "openvino", "triton"] = "onnxruntime"
    """What executes the members: `onnxruntime` or `openvino` in this process, or `triton`, Triton servers."""
    member_threads: int | None = Field(None, ge=1)
    """Threads of each member in this process; by default the cores are shared out evenly."""
    max_batch_size: int | None = Field(None, ge=1)
    """Images of one batch in this process, where the repository allows more."""
    pin_members: bool = True
    """Whether members in this process keep to cores of their own, where the process may use all it sees."""
    gpus: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], NoDecode, BeforeValidator(_split), AfterValidator(_distinct)
    ] = ()
    """Numbers, separated by commas, of the GPUs that the engine `onnxruntime` places members on, in turn; by
    default they run on the cores."""
    cuda_graphs: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], NoDecode, BeforeValidator(_split), AfterValidator(_distinct)
    ] = ()
    """Sizes, separated by commas, of the batches that members on `gpus` run as CUDA graphs, launched whole
    and not kernel by kernel."""
    pinned_host_memory: bool = False
    """Whether batches of several requests for `gpus` are put together in memory that GPUs copy out of by
    themselves. It needs the extra `cuda`."""
    openvino_cache: Path | None = None
    """Folder in which the engine `openvino` keeps compiled networks, for quicker starts; made if need be."""
    openvino_precision: Precision = "fp32"
    """What the engine `openvino` computes networks of fp32 in; `bf16` is for processors that have it."""
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines reach needs `api_keys_file`, `tls_client_authorities` or
    `allow_public`."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port to listen on; 0 picks a free one, which is printed."""
    allow_public: bool = False
    """Whether anyone who reaches a public address may ask without a key."""
    api_keys_file: FilePath | None = None
    """File of `coserve keys` with the keys that requests must bring; without it none is asked for."""
    tls_certificate: FilePath | None = None
    """PEM file of the server's certificate, with its intermediates; without it HTTP is not encrypted."""
    tls_key: FilePath | None = None
    """PEM file of that certificate's private key."""
    tls_key_password: SecretStr | None = None
    """Password of an encrypted `tls_key`."""
    tls_client_authorities: FilePath | None = None
    """PEM file of the authorities that must have certified every client (mutual TLS)."""
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_check_origin)], ...], NoDecode, BeforeValidator(_split)
    ] = ()
    """Origins, separated by commas, whose web pages may ask from a browser; `*` for all."""
    repository_poll_ms: float = Field(1000, ge=0)
    """Time between two looks for changes in `repository`, which are served without a restart; 0: no looks."""
    repository_control: bool = False
    """Whether clients may load and unload ensembles of `repository` over `/v2`."""
    drain_delay_ms: float = Field(0, ge=0)
    """Time after SIGTERM in which `/readyz` says no and new requests are still answered."""
    default_model: str | None = None
    """Ensemble that answers requests that name none; where only one is served, it does anyway."""
    min_members: int | None = Field(None, ge=1)
    """The quorum: members that must answer a request, by default all; an ensemble of fewer needs all."""
    deadline_ms: float = Field(10_000, gt=0)
    """Time for decoding, waiting and inference of one request, whose header may shorten it."""
    upload_timeout_ms: float = Field(60_000, gt=0)
    """Time for a request's body to arrive."""
    min_upload_rate: int = Field(1000, ge=0)
    """Bytes a second that a body must bring, on average and after its first 5 s; 0: any."""
    head_timeout_ms: float = Field(10_000, gt=0)
    """Time for a request's headers to arrive, and for a new connection to bring its first ones."""
    max_connections: int = Field(1000, ge=1)
    """Connections open at once; more are refused."""
    max_requests: int = Field(64, ge=1)
    """Classification requests in progress at once, from before their bodies are read; more are refused."""
    max_body_bytes: int = Field(32 * 2**20, ge=1)
    """Bytes in the body of one request."""
    max_images: int = Field(64, ge=1)
    """Images in one request."""
    max_pixels: int = Field(50_000_000, ge=1, le=MAX_PIXELS)
    """Pixels of one image, read from its header before it is decoded, and again before it is resized."""
    serve_members: bool = False
    """Whether requests may also name a member, to run it alone."""
    triton_url: Annotated[str, AfterValidator(_check_addresses)] | None = None
    """`HOST:PORT` of the gRPC service of each Triton server, separated by commas."""
    triton_refresh_ms: float = Field(500, ge=10)
    """Time between two looks at what each Triton has loaded."""
    triton_shared_memory_mib: int = Field(0, ge=0)
    """Shared memory for images on their way to Triton servers on this machine; 0 for none."""
    triton_shared_memory_gpu: int | None = Field(None, ge=0)
    """Number of the GPU whose memory that is; by default it is the system's. Needs the extra `cuda`."""
    triton_tls: bool = False
    """Whether to encrypt the connections to Triton."""
    triton_root_certificates: FilePath | None = None
    """PEM file of the authorities that may certify Triton; by default gRPC's own list."""
    triton_client_certificate: FilePath | None = None
    """PEM file with which the server proves its own identity to Triton."""
    triton_client_key: FilePath | None = None
    """PEM file of that certificate's private key."""
    triton_token: SecretStr | None = None
    """Bearer token sent with every call to Triton; only with `triton_tls`."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    """Least severe messages that are logged."""
    log_format: Literal["text", "json"] = "text"
    """Form of the log: lines for people, or one JSON object a line."""
    access_log: bool = True
    """Whether every request is logged, at level `info`."""
    otlp_endpoint: AnyHttpUrl | None = None
    """Base URL of the OpenTelemetry collector that traces go to, over OTLP/HTTP; None: no traces. Needs the
    extra `otel`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where settings come from, the strongest first."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def public(self) -> bool:
        """Whether other machines may reach the address; names other than localhost count as such."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def triton_addresses(self) -> list[str]:
        """HOST:PORT of each Triton server."""
        return [address.strip() for address in (self.triton_url or "").split(",")]

    @model_validator(mode="after")
    def _engine_has_what_it_needs(self) -> "Settings":
        if self.engine == "triton":
            if self.repository is not None:
                raise ValueError("repository: engine triton serves what Triton has loaded; leave it out")
            if self.triton_shared_memory_gpu is not None and not self.triton_shared_memory_mib:
                raise ValueError("triton_shared_memory_gpu: give triton_shared_memory_mib too")
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
        if self.pinned_host_memory and not self.gpus:
            raise ValueError("pinned_host_memory: only members on gpus gain by it")
        if self.gpus and self.member_threads is not None:
            raise ValueError("member_threads: members on gpus take no share of the cores")
        if self.engine != "openvino":
            if self.openvino_cache is not None:
                raise ValueError("openvino_cache: only engine openvino uses it")
            if self.openvino_precision != "fp32":
                raise ValueError("openvino_precision: only engine openvino uses it")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "Settings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_certificate is None and (self.tls_client_authorities or self.tls_key_password):
            raise ValueError("tls_certificate: checking clients, and a key's password, need it and tls_key")
        return self

    @model_validator(mode="after")
    def _strangers_stay_out(self) -> "Settings":
        if self.public and not (self.api_keys_file or self.tls_client_authorities or self.allow_public):
            raise ValueError(
                f"host: other machines may reach {self.host!r}, and anyone there could use the server; set "
                "api_keys_file (see coserve keys create), or allow_public (--allow-public) if that is wanted"
            )
        return self

    @model_validator(mode="after")
    def _secrets_are_encrypted(self) -> "Settings":
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
    """Read the settings; an argument that is None leaves its setting to the other sources.

    Args:
        file: TOML, with settings as its keys.

    Raises:
        SettingsError: a setting is unknown, missing or out of range; its faults name every one.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if file is not None and not file.is_file():
        raise SettingsError([f"{file} is not a file"])
    try:
        return _from(file)(**given)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        raise SettingsError([_fault(e["type"], e["loc"], e["msg"]) for e in error.errors()]) from error
    # TOML's own error, and that of bytes which are no UTF-8, are ValueErrors.
    except (ValueError, OSError) as error:
        if file is None:
            raise
        raise SettingsError([f"{file} cannot be read: {error}"]) from error


def _from(file: Path | None) -> type[Settings]:
    """The settings with a file as their last source: pydantic-settings takes it from the class alone."""

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    return FromFile if file else Settings


def _fault(kind: str, location: tuple[int | str, ...], message: str) -> str:
    """Pydantic's account of a fault, in the form `setting: what is wrong`."""
    name = str(location[0]) if location else ""
    if kind == "extra_forbidden":
        (nearest,) = difflib.get_close_matches(name, Settings.model_fields, 1, cutoff=0)
        return f"{name}: no setting has this name; the nearest is {nearest}"
    return (f"{name}: " if name else "") + message.removeprefix("Value error, ")
