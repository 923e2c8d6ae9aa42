"""What settings there are, where their values come from, and what is wrong with a file of them."""

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from coserve_server.errors import SettingsError, StartupError
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.tls import server_context
from coserve_server.settings import Settings, load_settings

_TYPES = {
    bool: "true, false",
    int: "integer",
    float: "number",
    Path: "path",
    SecretStr: "secret",
}


@dataclass(frozen=True)
class Described:
    """A setting as users see it; `default` is as in TOML, and empty where there is none."""

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class Resolved:
    """A setting's value, as JSON has it and secrets masked, and whether file or environment gave it."""

    name: str
    value: Any
    source: str


def describe() -> list[Described]:
    """Every setting there is."""
    return [_described(name, field) for name, field in Settings.model_fields.items()]


def resolve(file: Path | None) -> list[Resolved]:
    """Every setting as a server that is started now would have it.

    Raises:
        SettingsError: a setting is unknown, missing or out of range.
    """
    settings = load_settings(file)
    values = settings.model_dump(mode="json")
    sources = {"environment": EnvSettingsSource(Settings)()}
    if file is not None:
        sources["file"] = TomlConfigSettingsSource(Settings, file)()
    return [
        Resolved(name, value, next((source for source, given in sources.items() if name in given), "default"))
        for name, value in values.items()
    ]


def faults(file: Path) -> Iterator[str]:
    """What would keep a server with this file from starting, short of loading members and taking its port."""
    try:
        settings = load_settings(file)
    except SettingsError as error:
        yield from error.faults
        return
    yield from _fault(lambda: server_context(settings))
    if (keys := settings.api_keys_file) is not None:
        yield from _fault(lambda: KeyRing(keys))
    if (repository := settings.repository) is not None:
        yield from _fault(lambda: _check_repository(repository, settings.default_model))


def _fault(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except SettingsError as error:
        yield from error.faults
    except StartupError as error:
        yield str(error)


def _check_repository(repository: Path, default_model: str | None) -> None:
    from coserve_server.ensembles.repository import read_contents

    contents = read_contents(repository)
    found = [str(error) for error in contents.errors.values()]
    names = sorted({*contents.versions, *contents.errors})
    if default_model is not None and default_model not in names:
        found.append(f"default_model: {default_model!r} is not served; choose from {', '.join(names)}")
    if found:
        raise SettingsError(found)


def _described(name: str, field: FieldInfo) -> Described:
    return Described(
        name, _type(field.annotation), _default(field), " ".join((field.description or "").split())
    )


def _type(annotation: Any) -> str:
    """A type in users' words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments if one is not type(None))
    if origin is Literal:
        return ", ".join(arguments)
    return "list" if origin is tuple else _TYPES.get(annotation, "text")


def _default(field: FieldInfo) -> str:
    default = field.default
    return (
        "" if default in (None, ()) else str(default).lower() if isinstance(default, bool) else str(default)
    )
