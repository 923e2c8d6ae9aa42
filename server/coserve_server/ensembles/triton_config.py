"""Read ensembles from Triton's model configurations: docs/reference/model-repository.md."""

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json
from tritonclient.grpc.model_config_pb2 import TYPE_FP32

from coserve_server.ensembles.accuracy import Accuracy
from coserve_server.ensembles.calibration import UNCALIBRATED, Calibration
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.ensembles.preprocessing import Positive, Preprocessing
from coserve_server.errors import RepositoryError

logger = logging.getLogger(__name__)


def read_ensemble(name: str, version: str, configs: Mapping[str, Any], source: str) -> Ensemble:
    """Read an ensemble from its own and its members' configurations.

    Args:
        version: the ensemble's version.
        configs: `ModelConfig` messages by model name.
        source: where the ensemble's configuration comes from, for error messages.

    Raises:
        RepositoryError: it does not follow docs/reference/model-repository.md; begins with `source`.
    """
    return _Reader(name, version, configs, source).read_ensemble()


def is_for_coserve(config: Any) -> bool:
    """Return whether an ensemble, sound or not, was made for Coserve; Triton may have other kinds."""
    return "preprocessing" in config.parameters or "labels" in config.parameters


class _Provenance(BaseModel):
    """The parts of the provenance that serving uses."""

    accuracy: Accuracy = Accuracy()
    calibration: Calibration = UNCALIBRATED


@functools.lru_cache
def _warn_left_out(source: str) -> None:
    """Log once that figures of an ensemble are not used."""
    logger.warning(
        "%s: the members' weights differ, so calibration and scores of subsets are left out: they describe "
        "the mean with equal weights",
        source,
    )


class _Reader:
    """Reads one ensemble; every error names its source."""

    def __init__(self, name: str, version: str, configs: Mapping[str, Any], source: str) -> None:
        self.name = name
        self.version = version
        self.configs = configs
        self.config = configs[name]
        self.source = source

    def read_ensemble(self) -> Ensemble:
        config = self.config
        if config.max_batch_size < 1:
            raise self.error("max_batch_size must be at least 1")
        preprocessing: Preprocessing = self.read_parameter("preprocessing", Preprocessing)
        labels: list[str] = self.read_parameter("labels", list[str])
        if len(labels) < 2:
            raise self.error(
                f"parameter labels: an ensemble needs at least two classes, not {len(labels)}, since the "
                "probability of a single one is always 1; for a network with one logit, coserve export adds "
                "the logit of the other class"
            )
        image = self.check_tensor("input", config.input, list(preprocessing.shape))
        logits = self.check_tensor("output", config.output, [len(labels)])
        members = self.read_members(image, logits)
        shown, provenance = self.read_provenance(members)
        return Ensemble(
            name=self.name,
            version=self.version,
            max_batch_size=config.max_batch_size,
            input_name=image,
            output_name=logits,
            members=members,
            preprocessing=preprocessing,
            labels=tuple(labels),
            provenance=shown,
            accuracy=provenance.accuracy,
            calibration=provenance.calibration,
        )

    def read_provenance(self, members: Sequence[Member]) -> tuple[dict[str, Any], _Provenance]:
        """Return the provenance to show, and its parts that serving uses.

        Calibration and the scores of subsets describe the mean with equal weights. If the weights differ,
        they are left out.
        """
        shown: dict[str, Any] = self.read_parameter("provenance", dict[str, Any], default={})
        used: _Provenance = self.read_parameter("provenance", _Provenance, default=_Provenance())
        if len({member.weight for member in members}) == 1:
            return shown, used
        if "calibration" in shown or used.accuracy.subsets:
            _warn_left_out(self.source)
        shown = {key: value for key, value in shown.items() if key != "calibration"}
        if "accuracy" in shown:
            shown["accuracy"] = {key: value for key, value in shown["accuracy"].items() if key != "subsets"}
        return shown, _Provenance(accuracy=used.accuracy.model_copy(update={"subsets": ()}))

    def read_members(self, image: str, logits: str) -> tuple[Member, ...]:
        steps = list(self.config.ensemble_scheduling.step)
        if len(steps) < 2:
            raise self.error("ensemble_scheduling needs a step per member and the mean as last step")
        mean = steps.pop()
        # Readiness, statistics and replies know members by name.
        name, count = Counter(step.model_name for step in steps).most_common(1)[0]
        if count > 1:
            raise self.error(
                f"{count} steps run {name!r}, but every member must be a model of its own, whatever its "
                "version; export its networks under different names"
            )
        weights: list[float] = self.read_parameter("weights", list[Positive], default=[1.0] * len(steps))
        if len(weights) != len(steps):
            raise self.error(f"parameter weights has {len(weights)} numbers for {len(steps)} members")
        members = tuple(
            self.read_member(step, image, weight) for step, weight in zip(steps, weights, strict=True)
        )
        averaged = [source for step in steps for source in step.output_map.values()]
        if sorted(mean.input_map.values()) != sorted(averaged):
            raise self.error(f"the last step ({mean.model_name}) must take the output of every other step")
        if list(mean.output_map.values()) != [logits]:
            raise self.error(f"the last step ({mean.model_name}) must give {logits!r}")
        return members

    def read_member(self, step: Any, image: str, weight: float) -> Member:
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

    def check_tensor(self, field: str, tensors: Iterable[Any], dims: list[int]) -> str:
        """Check the ensemble's only input or output, and return its name."""
        tensors = list(tensors)
        if len(tensors) != 1:
            raise self.error(f"there must be one {field}, not {len(tensors)}")
        if tensors[0].data_type != TYPE_FP32 or list(tensors[0].dims) != dims:
            raise self.error(f"{field} {tensors[0].name!r} must be TYPE_FP32 with dims {dims}")
        return str(tensors[0].name)

    def read_parameter(self, key: str, kind: Any, default: Any = None) -> Any:
        """Read a parameter's JSON and check it against `kind`; without a default it must exist."""
        if key not in self.config.parameters:
            if default is None:
                raise self.error(f"parameter {key} is missing")
            return default
        try:
            value = json.loads(self.config.parameters[key].string_value)
            # Replies quote it, a few levels down.
            to_json([[[[[[[[value]]]]]]]])
        # Besides syntax: half a surrogate pair, a number of thousands of digits, arrays in arrays.
        except (ValueError, RecursionError) as error:
            raise self.error(f"parameter {key} is not JSON: {error}") from error
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, (key, *fault["loc"])))
            reason = "unknown" if fault["type"] == "extra_forbidden" else fault["msg"]
            raise self.error(f"parameter {where}: {reason}") from error

    def error(self, message: str) -> RepositoryError:
        return RepositoryError(f"{self.source}: {message}")
