"""Describe the settings, show where their values come from, and check a file of settings."""

import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from coserve_server.errors import SettingsError, StartupError
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.tls import check_triton_files, server_context
from coserve_server.settings import Settings, load_settings
from coserve_server.settings.environment import Environment
from coserve_server.settings.load import read_file

_TYPES = {
    bool: "true, false",
    int: "integer",
    float: "number",
    Path: "path",
    SecretStr: "secret",
}


@dataclass(frozen=True)
class Description:
    """A setting as users see it; `default` is written as in TOML, and empty if there is none."""

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class Resolved:
    """A setting's value as in JSON, with secrets masked, and its source: environment, file or default."""

    name: str
    value: Any
    source: str


def describe() -> list[Description]:
    """Describe every setting."""
    return [_describe(name, field) for name, field in Settings.model_fields.items()]


def resolve(file: Path | None) -> list[Resolved]:
    """Resolve every setting as a server started now would.

    Raises:
        SettingsError: a setting is unknown, missing or out of range.
    """
    settings = load_settings(file)
    values = {name: _mask(value) for name, value in settings.model_dump(mode="json").items()}
    sources = {"environment": Environment(Settings)()}
    if file is not None:
        sources["file"] = read_file(file)
    return [
        Resolved(name, value, next((source for source, given in sources.items() if name in given), "default"))
        for name, value in values.items()
    ]


def _mask(value: Any) -> Any:
    """Mask the user and the password of an address; secrets are masked already."""
    return re.sub(r"(?<=://)[^/@]*@", "**********@", value) if isinstance(value, str) else value


def find_faults(file: Path) -> Iterator[str]:
    """Find faults of a file of settings, the files it names and this machine, without loading members."""
    try:
        settings = load_settings(file)
    except SettingsError as error:
        yield from error.faults
        return
    yield from _run(lambda: server_context(settings))
    yield from _run(lambda: check_triton_files(settings))
    if (keys := settings.api_keys_file) is not None:
        yield from _run(lambda: KeyRing(keys))
    if gpus := settings.gpus:
        yield from _run(lambda: _check_gpus(gpus))
    if (repository := settings.repository) is not None:
        yield from _run(lambda: _check_repository(repository, settings.default_model))
    yield from _run(lambda: _check_workers(settings))


def _run(check: Callable[[], object]) -> Iterator[str]:
    """Run a check, and give its errors one by one."""
    try:
        check()
    except SettingsError as error:
        yield from error.faults
    except StartupError as error:
        yield str(error)


def _check_workers(settings: Settings) -> None:
    from coserve_server.workers.plan import plan_slices

    plan_slices(settings)


def _check_gpus(gpus: Sequence[int]) -> None:
    from coserve_server.engines.onnxruntime.gpus import check_gpus

    check_gpus(gpus)


def _check_repository(repository: Path, default_model: str | None) -> None:
    from coserve_server.ensembles.repository import read_contents

    contents = read_contents(repository)
    # Ensembles may share a fault.
    faults = list(dict.fromkeys(contents.errors.values()))
    names = sorted({*contents.versions, *contents.errors})
    if default_model is not None and default_model not in names:
        faults.append(f"default_model: {default_model!r} is not served; choose from {', '.join(names)}")
    if faults:
        raise SettingsError(faults)


def _describe(name: str, field: FieldInfo) -> Description:
    text = " ".join((field.description or "").split())
    return Description(name, _format_type(field.annotation), _format_default(field), text)


def _format_type(annotation: Any) -> str:
    """Name a type in words for users."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return _format_type(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_format_type(one) for one in arguments if one is not type(None))
    if origin is Literal:
        return ", ".join(arguments)
    return "list" if origin is tuple else _TYPES.get(annotation, "text")


def _format_default(field: FieldInfo) -> str:
    default = field.default
    if default in (None, ()):
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)
