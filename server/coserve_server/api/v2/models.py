"""Describes the server and its models, as the Open Inference Protocol and Triton's extensions do.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and
https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

import json
from importlib.metadata import version
from typing import Literal

from pydantic import BaseModel, Field

from coserve_server.ensembles.ensemble import Ensemble

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)


class ServerMetadata(BaseModel):
    """The server's name, version and protocol extensions."""

    name: str = "coserve"
    version: str = Field(default_factory=lambda: version("coserve"))
    extensions: tuple[str, ...] = EXTENSIONS


class Live(BaseModel):
    """Whether the process is alive."""

    live: bool


class Ready(BaseModel):
    """Whether every ensemble has its quorum of members."""

    ready: bool


class ModelReady(Ready):
    """Whether one model has its quorum of members."""

    name: str


class TensorMetadata(BaseModel):
    """An input or output of a model, with its batch dimension."""

    name: str
    datatype: Literal["FP32", "BYTES"] = "FP32"
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model's tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(BaseModel):
    """An input or output of a model, without its batch dimension."""

    name: str
    data_type: Literal["TYPE_FP32", "TYPE_STRING"] = "TYPE_FP32"
    dims: list[int]


class ImageConfig(TensorConfig):
    """The input of a model, whose images are always channels first, unless they are files."""

    format: Literal["FORMAT_NCHW", "FORMAT_NONE"] = "FORMAT_NCHW"


class ConfigParameter(BaseModel):
    """A parameter in a model's configuration."""

    string_value: str


class ModelConfig(BaseModel):
    """A model's configuration, as Triton would report it."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ImageConfig]
    output: list[TensorConfig]
    parameters: dict[str, ConfigParameter] = Field(
        description="JSON of `labels`, `preprocessing` and `provenance`, as in the model repository."
    )


def describe_tensors(model: Ensemble, versions: list[str], *, announce_files: bool) -> ModelMetadata:
    """Return a model's metadata.

    Args:
        versions: the versions that are served.
        announce_files: whether to describe the input as image files.
    """
    tensor = TensorMetadata(name=model.input_name, shape=[-1, *image_shape(model)])
    files = TensorMetadata(name=model.input_name, datatype="BYTES", shape=[-1, 1])
    return ModelMetadata(
        name=model.name,
        versions=versions,
        platform=_platform(model),
        inputs=[files if announce_files else tensor],
        outputs=[TensorMetadata(name=model.output_name, shape=[-1, len(model.labels)])],
    )


def describe_config(model: Ensemble, max_images: int, *, announce_files: bool) -> ModelConfig:
    """Return a model's configuration.

    Args:
        max_images: limit on the images of a request, which limits `max_batch_size` too.
        announce_files: whether to describe the input as image files.
    """
    tensor = ImageConfig(name=model.input_name, dims=image_shape(model))
    files = ImageConfig(name=model.input_name, data_type="TYPE_STRING", format="FORMAT_NONE", dims=[1])
    parameters = {
        "labels": model.labels,
        "preprocessing": model.preprocessing.model_dump(),
        "provenance": model.provenance,
    }
    return ModelConfig(
        name=model.name,
        platform=_platform(model),
        backend="",
        max_batch_size=min(model.max_batch_size, max_images),
        input=[files if announce_files else tensor],
        output=[TensorConfig(name=model.output_name, dims=[len(model.labels)])],
        parameters={
            key: ConfigParameter(string_value=json.dumps(value)) for key, value in parameters.items()
        },
    )


def image_shape(model: Ensemble) -> list[int]:
    """Return channels, height and width of a preprocessed image."""
    return list(model.preprocessing.shape)


def _platform(model: Ensemble) -> str:
    # With Triton's own name for ensembles, clients would ask for every step's configuration.
    return "onnxruntime_onnx" if model.part_of else "coserve_ensemble"
