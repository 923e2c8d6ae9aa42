"""Triton's `config.pbtxt` files, built with tritonclient's protobuf classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput, ModelInstanceGroup, ModelWarmup

from coserve_export.deployment import set_parameters
from coserve_export.ensemble import IMAGES, LOGITS, Description, Member
from coserve_export.errors import DescriptionError
from coserve_export.mean_graph import mean_inputs

FP32 = model_config_pb2.TYPE_FP32
KEPT_VERSIONS = 2
"""Versions of a model that Triton serves: the ensemble runs the previous one while a new one loads."""


def member_config(description: Description, index: int, member: Member) -> ModelConfig:
    """Return the configuration of one member, with the description's deployment."""
    deployment = description.deployment
    config = _onnxruntime_config(description.member_names[index], description.max_batch_size)
    config.input.append(_image_input(member.input, description))
    config.output.add(name=member.output, data_type=FP32, dims=[len(description.labels)])
    deployment.apply(config, index, description.num_members)
    _add_warm_up(config, [1, *deployment.preferred_batch_sizes])
    return config


def mean_config(description: Description) -> ModelConfig:
    """Return the configuration of the mean graph, whose work is too small for a GPU or several threads."""
    config = _onnxruntime_config(description.mean_name, description.max_batch_size)
    for name in (*mean_inputs(description.num_members), LOGITS):
        tensors = config.output if name == LOGITS else config.input
        tensors.add(name=name, data_type=FP32, dims=[len(description.labels)])
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=1)
    set_parameters(config, {"intra_op_thread_count": "1"})
    _add_warm_up(config, [1])
    return config


def ensemble_config(
    description: Description, members: Sequence[Member], provenance: Mapping[str, object], version: int
) -> ModelConfig:
    """Return the configuration of the ensemble, which runs every member on the same images, then the mean.

    Its steps name the version of their models, so that no response mixes members of different versions.

    Raises:
        DescriptionError: the provenance cannot be written as JSON.
    """
    config = ModelConfig(
        name=description.name, platform="ensemble", max_batch_size=description.max_batch_size
    )
    config.input.append(_image_input(IMAGES, description))
    config.output.add(
        name=LOGITS, data_type=FP32, dims=[len(description.labels)], label_filename="labels.txt"
    )
    steps = config.ensemble_scheduling.step
    for name, member in zip(description.member_names, members, strict=True):
        steps.add(
            model_name=name,
            model_version=version,
            input_map={member.input: IMAGES},
            output_map={member.output: f"{name}_logits"},
        )
    steps.add(
        model_name=description.mean_name,
        model_version=version,
        input_map={
            tensor: f"{name}_logits"
            for tensor, name in zip(mean_inputs(len(members)), description.member_names, strict=True)
        },
        output_map={LOGITS: LOGITS},
    )
    for key, value in _parameters(description, provenance).items():
        config.parameters[key].string_value = _to_json(key, value)
    return config


def to_text(config: ModelConfig) -> str:
    """Return a configuration in protobuf's text format."""
    return text_format.MessageToString(config, as_utf8=True)


def _onnxruntime_config(name: str, max_batch_size: int) -> ModelConfig:
    config = ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch_size)
    config.version_policy.latest.num_versions = KEPT_VERSIONS
    return config


def _image_input(name: str, description: Description) -> ModelInput:
    preprocessing = description.preprocessing
    return ModelInput(
        name=name,
        data_type=FP32,
        # Image clients, such as Triton's own examples, refuse an input without a format.
        format=ModelInput.FORMAT_NCHW,
        dims=[3, preprocessing.height, preprocessing.width],
    )


def _add_warm_up(config: ModelConfig, batch_sizes: Sequence[int]) -> None:
    """Make Triton run batches of zeros, of these sizes, before it reports the model ready."""
    for size in dict.fromkeys(batch_sizes):
        inputs = {
            tensor.name: ModelWarmup.Input(data_type=tensor.data_type, dims=tensor.dims, zero_data=True)
            for tensor in config.input
        }
        config.model_warmup.add(name=f"batch_{size}", batch_size=size, inputs=inputs)


def _parameters(description: Description, provenance: Mapping[str, object]) -> dict[str, object]:
    parameters: dict[str, object] = {
        "preprocessing": asdict(description.preprocessing),
        "labels": list(description.labels),
        "provenance": provenance,
    }
    if description.unequal_weights is not None:
        parameters["weights"] = list(description.unequal_weights)
    return parameters


def _to_json(key: str, value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # Fails on a file name that is not UTF-8.
    except (TypeError, ValueError) as error:
        raise DescriptionError(f"{key} cannot be written as JSON: {error}") from error
    return text
