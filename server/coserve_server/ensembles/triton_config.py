"""Read ensembles from Triton's model configurations: docs/model-repository.md."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from tritonclient.grpc.model_config_pb2 import TYPE_FP32

from coserve_server.ensembles.accuracy import Accuracy
from coserve_server.ensembles.calibration import UNCALIBRATED, Calibration
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.errors import RepositoryError
from coserve_server.images.preprocess import Positive, Preprocessing


def read_ensemble(name: str, version: str, configs: Mapping[str, Any], source: str) -> Ensemble:
    """Make an ensemble of its own and its members' configurations.

    Args:
        version: of the ensemble.
        configs: `ModelConfig` messages by model name.
        source: where the ensemble's configuration comes from, for messages.

    Raises:
        RepositoryError: it does not follow docs/model-repository.md; the text begins with `source`.
    """
    return _Reader(name, version, configs, source).ensemble()


class _Provenance(BaseModel):
    """What serving itself uses of the provenance."""

    accuracy: Accuracy = Accuracy()
    calibration: Calibration = UNCALIBRATED


class _Reader:
    """Reads one ensemble; every error names its source."""

    def __init__(self, name: str, version: str, configs: Mapping[str, Any], source: str) -> None:
        self.name, self.version, self.configs, self.source = name, version, configs, source
        self.config = configs[name]

    def ensemble(self) -> Ensemble:
        config = self.config
        if config.max_batch_size < 1:
            raise self.error("max_batch_size must be at least 1")
        preprocessing: Preprocessing = self.parameter("preprocessing", Preprocessing)
        labels: list[str] = self.parameter("labels", list[str])
        size = list(preprocessing.shape)
        image = self.tensor("input", config.input, size)
        logits = self.tensor("output", config.output, [len(labels)])
        provenance: _Provenance = self.parameter("provenance", _Provenance, default=_Provenance())
        return Ensemble(
            name=self.name,
            version=self.version,
            max_batch_size=config.max_batch_size,
            input_name=image,
            output_name=logits,
            members=self.members(image, logits),
            preprocessing=preprocessing,
            labels=tuple(labels),
            provenance=self.parameter("provenance", dict[str, Any], default={}),
            accuracy=provenance.accuracy,
            calibration=provenance.calibration,
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
            raise self.error(f"step {name!r} has no configuration")
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
        version = step.model_version if step.model_version > 0 else None
        batches = config.HasField("dynamic_batching")
        return Member(name, version, input_name, next(iter(step.output_map)), weight, batches)

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
        return RepositoryError(f"{self.source}: {message}")
