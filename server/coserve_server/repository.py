"""Reads a model repository in NVIDIA Triton's layout: what docs/model-repository.md describes."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from pydantic import TypeAdapter, ValidationError
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, ModelConfig

from coserve_server.errors import RepositoryError
from coserve_server.images import Positive, Preprocessing

CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Attributes:
        model_path: its ONNX file.
        input_name: its tensor that takes the images, FP32 `[N, 3, H, W]`.
        output_name: its tensor that gives the logits, FP32 `[N, C]`.
        weight: its share in the mean, relative to the others'.
    """

    name: str
    model_path: Path
    input_name: str
    output_name: str
    weight: float


@dataclass(frozen=True)
class Ensemble:
    """S members that see the same images and whose logits are averaged."""

    name: str
    version: str
    max_batch_size: int
    members: tuple[Member, ...]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    provenance: dict[str, Any]


def read_repository(folder: Path) -> dict[str, Ensemble]:
    """Read every ensemble of a model repository, by name.

    Raises:
        RepositoryError: there is none, or one is broken.
    """
    if not folder.is_dir():
        raise RepositoryError(f"{folder} is not a folder")
    names = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    configs = {name: _read_config(folder, name) for name in names}
    ensembles = [name for name, config in configs.items() if config.HasField("ensemble_scheduling")]
    if not ensembles:
        raise RepositoryError(f"{folder} has no ensemble: no */{CONFIG} has an ensemble_scheduling")
    return {name: _Reader(folder, name, configs).ensemble() for name in ensembles}


def _read_config(folder: Path, name: str) -> Any:
    path = folder / name / CONFIG
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}") from error
    if config.name not in ("", name):
        raise RepositoryError(f"{path}: name is {config.name!r}, its folder {name!r}")
    return config


class _Reader:
    """Reads one ensemble; every error names its config file."""

    def __init__(self, folder: Path, name: str, configs: dict[str, Any]) -> None:
        self.folder, self.name, self.configs = folder, name, configs
        self.config = configs[name]
        self.path = folder / name / CONFIG

    def ensemble(self) -> Ensemble:
        config = self.config
        if config.max_batch_size < 1:
            raise self.error("max_batch_size must be at least 1")
        preprocessing: Preprocessing = self.parameter("preprocessing", Preprocessing)
        labels: list[str] = self.parameter("labels", list[str])
        size = [3, preprocessing.height, preprocessing.width]
        image = self.tensor("input", config.input, size)
        logits = self.tensor("output", config.output, [len(labels)])
        return Ensemble(
            name=self.name,
            version=str(self.versions(self.name)[-1]),
            max_batch_size=config.max_batch_size,
            members=self.members(image, logits),
            preprocessing=preprocessing,
            labels=tuple(labels),
            provenance=self.parameter("provenance", dict[str, Any], default={}),
        )

    def members(self, image: str, logits: str) -> tuple[Member, ...]:
        steps = list(self.config.ensemble_scheduling.step)
        if len(steps) < 2:
            raise self.error("ensemble_scheduling needs a step per member and the mean as last step")
        mean = steps.pop()
        weights: list[float] = self.parameter("weights", list[Positive], default=[1.0] * len(steps))
        if len(weights) != len(steps):
            raise self.error(f"parameter weights has {len(weights)} numbers for {len(steps)} members")
        members = tuple(self.member(step, image, weight) for step, weight in zip(steps, weights, strict=True))
        averaged = [source for step in steps for source in step.output_map.values()]
        if sorted(mean.input_map.values()) != sorted(averaged):
            raise self.error(f"the last step ({mean.model_name}) must take the output of every other step")
        if list(mean.output_map.values()) != [logits]:
            raise self.error(f"the last step ({mean.model_name}) must give {logits!r}")
        return members

    def member(self, step: Any, image: str, weight: float) -> Member:
        name = step.model_name
        config = self.configs.get(name)
        if config is None:
            raise self.error(f"step {name!r} has no {self.folder / name / CONFIG}")
        if config.backend != "onnxruntime" and config.platform != "onnxruntime_onnx":
            raise self.error(f"step {name!r}: backend must be 'onnxruntime', not {config.backend!r}")
        if config.max_batch_size < self.config.max_batch_size:
            raise self.error(
                f"step {name!r}: max_batch_size {config.max_batch_size} is less than the "
                f"ensemble's {self.config.max_batch_size}"
            )
        if len(step.input_map) != 1 or len(step.output_map) != 1:
            raise self.error(f"step {name!r} must have one input_map and one output_map")
        ((input_name, source),) = step.input_map.items()
        if source != image:
            raise self.error(f"step {name!r}: input_map takes {source!r}, not the ensemble's input {image!r}")
        return Member(name, self.model_file(step, config), input_name, next(iter(step.output_map)), weight)

    def model_file(self, step: Any, config: Any) -> Path:
        """The file of the version the step asks for, or of the highest that the policy allows."""
        filename = str(config.default_model_filename) or "model.onnx"
        versions = self.versions(step.model_name)
        if step.model_version > 0:
            versions = [v for v in versions if v == step.model_version]
        elif config.version_policy.HasField("specific"):
            versions = [v for v in versions if v in config.version_policy.specific.versions]
        files: list[Path] = [self.folder / step.model_name / str(version) / filename for version in versions]
        present = [file for file in files if file.is_file()]
        if not present:
            raise self.error(f"step {step.model_name!r}: no version folder of it has the wanted {filename}")
        return present[-1]

    def versions(self, name: str) -> list[int]:
        """Numbers of a model's version folders, ascending, at least one."""
        folder = self.folder / name
        found = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
        if not found:
            raise self.error(f"{folder} has no version folder, such as {folder / '1'}")
        return found

    def tensor(self, field: str, tensors: Iterable[Any], dims: list[int]) -> str:
        """Name of the ensemble's only input or output, which must be FP32 of the given dimensions."""
        tensors = list(tensors)
        if len(tensors) != 1:
            raise self.error(f"there must be one {field}, not {len(tensors)}")
        if tensors[0].data_type != TYPE_FP32 or list(tensors[0].dims) != dims:
            raise self.error(f"{field} {tensors[0].name!r} must be TYPE_FP32 with dims {dims}")
        return str(tensors[0].name)

    def parameter(self, key: str, kind: Any, default: Any = None) -> Any:
        """A parameter's JSON, checked against `kind`; an error where it is missing and has no default."""
        if key not in self.config.parameters:
            if default is None:
                raise self.error(f"parameter {key} is missing")
            return default
        try:
            return TypeAdapter(kind).validate_python(json.loads(self.config.parameters[key].string_value))
        except json.JSONDecodeError as error:
            raise self.error(f"parameter {key} is not JSON: {error}") from error
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, (key, *fault["loc"])))
            raise self.error(f"parameter {where}: {fault['msg']}") from error

    def error(self, message: str) -> RepositoryError:
        return RepositoryError(f"{self.path}: {message}")
