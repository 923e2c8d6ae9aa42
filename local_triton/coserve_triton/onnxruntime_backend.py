"""Triton's `onnxruntime` backend in Python, for a Triton server without the native one.

Triton's Python backend imports this module in one process per instance of a model
(https://github.com/triton-inference-server/backend/blob/main/docs/python_based_backends.md).
It supports these options of the native backend: `intra_op_thread_count`, `inter_op_thread_count`,
`execution_mode`, `enable_mem_arena`, `enable_mem_pattern`, and the accelerator `cuda` with its parameters.
"""

import ctypes
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

DEFAULT_THREADS = "1"
"""By default the native backend uses all cores, which slows down members that share them."""
TRUE = ("1", "true", "True")
NOT_IN_NUMPY = {"TYPE_STRING": "BYTES", "TYPE_BF16": "BF16"}
"""Types that DLPack cannot pass to NumPy, by their names in configurations."""

PyCapsule_SetName = ctypes.pythonapi.PyCapsule_SetName
PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
USED = ctypes.c_char_p(b"used_dltensor")
"""The DLPack specification's name for a capsule whose tensor has a new owner."""

Tensors = dict[str, NDArray[Any]]


class TritonPythonModel:
    """One instance of a model: an ONNX Runtime session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model.

        Args:
            args: the model's configuration as JSON, its folder and version, and the instance's device.

        Raises:
            TritonModelException: it cannot be loaded; Triton marks the model as failed with this text.
        """
        config = json.loads(args["model_config"])
        version = Path(args["model_repository"]).resolve() / args["model_version"]
        path = version / (config.get("default_model_filename") or "model.onnx")
        self.name = args["model_instance_name"]
        self.batches = config.get("max_batch_size", 0) > 0
        self.outputs = [tensor["name"] for tensor in config["output"]]
        _check_types(version.parent.name, [*config["input"], *config["output"]])
        options = session_options(config)
        kind = args["model_instance_kind"]
        execution_providers = select_providers(config, kind, int(args["model_instance_device_id"]))
        try:
            self.session = ort.InferenceSession(path, options, execution_providers)
        # ONNX Runtime's errors share no base class but Exception.
        except Exception as error:
            raise pb_utils.TritonModelException(f"{path} cannot be loaded: {_one_line(error)}") from error
        _check_names(path, "input", config["input"], self.session.get_inputs())
        _check_names(path, "output", config["output"], self.session.get_outputs())
        pb_utils.Logger.log_info(
            f"{self.name} runs {path} on {kind} with ONNX Runtime {ort.__version__}, "
            f"{options.intra_op_num_threads or 'a thread per core as'} threads"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests that Triton collected; if the model takes batches, as one batch."""
        if self.batches:
            return self._answer(requests)
        return [response for request in requests for response in self._answer([request])]

    def _answer(self, requests: list[Any]) -> list[Any]:
        # With numpy 2 `as_numpy` is silently wrong: every element equals the first.
        inputs = [{tensor.name(): np.from_dlpack(tensor) for tensor in r.inputs()} for r in requests]
        names = self._select(*requests)
        try:
            outputs = dict(zip(names, self.session.run(names, _join(inputs)), strict=True))
        # Any exception, as above; a request that fails must not end the instance.
        except Exception as error:
            pb_utils.Logger.log_error(f"{self.name}: {error}")
            return [
                pb_utils.InferenceResponse(error=pb_utils.TritonError(_one_line(error))) for _ in requests
            ]
        sizes = [len(next(iter(tensors.values()))) for tensors in inputs]
        parts = _split(outputs, sizes) if len(requests) > 1 else [outputs]
        return [self._response(r, part) for r, part in zip(requests, parts, strict=True)]

    def _select(self, *requests: Any) -> list[str]:
        """Return the outputs that any request wants, as the configuration orders them: Triton gives sets."""
        wanted = {name for request in requests for name in request.requested_output_names()}
        return [name for name in self.outputs if name in wanted]

    def _response(self, request: Any, outputs: Tensors) -> Any:
        return pb_utils.InferenceResponse([_tensor(name, outputs[name]) for name in self._select(request)])


def session_options(config: dict[str, Any]) -> ort.SessionOptions:
    """Make ONNX Runtime's options from the `parameters` of a model's configuration."""
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", DEFAULT_THREADS))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", DEFAULT_THREADS))
    if parameters.get("execution_mode") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = parameters.get("enable_mem_arena", "1") in TRUE
    options.enable_mem_pattern = parameters.get("enable_mem_pattern", "1") in TRUE
    # Threads that spin while they wait take CPU time from the members that run beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def select_providers(config: dict[str, Any], kind: str, device: int) -> list[Any]:
    """Select ONNX Runtime's execution providers for an instance.

    Args:
        kind: `CPU` or `GPU`.
        device: number of the GPU.

    Raises:
        TritonModelException: this ONNX Runtime lacks the provider, or this backend the accelerator.
    """
    if kind != "GPU":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise pb_utils.TritonModelException(
            "placed on a GPU, which this ONNX Runtime cannot use: install onnxruntime-gpu in place of "
            "onnxruntime, or hide the GPUs with CUDA_VISIBLE_DEVICES=''"
        )
    cuda: dict[str, Any] = {"device_id": device}
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    for accelerator in accelerators.get("gpu_execution_accelerator", []):
        if accelerator["name"] != "cuda":
            raise pb_utils.TritonModelException(f"{accelerator['name']} needs Triton's native backend")
        cuda.update(accelerator.get("parameters", {}))
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


def _check_types(model: str, configured: Sequence[dict[str, Any]]) -> None:
    for tensor in configured:
        if (kind := NOT_IN_NUMPY.get(tensor["data_type"])) is not None:
            raise pb_utils.TritonModelException(
                f"{model}: {tensor['name']} is {kind}, which needs Triton's native ONNX Runtime backend: use "
                "NVIDIA's container for this model"
            )


def _check_names(path: Path, kind: str, configured: list[dict[str, Any]], tensors: Sequence[Any]) -> None:
    wanted = {tensor["name"] for tensor in configured}
    found = {tensor.name for tensor in tensors}
    if not wanted <= found:
        missing = ", ".join(sorted(wanted - found))
        present = ", ".join(sorted(found))
        raise pb_utils.TritonModelException(f"{path} has no {kind} {missing}, only {present}")


def _join(inputs: Sequence[Tensors]) -> Tensors:
    """Concatenate several requests' tensors to one batch."""
    if len(inputs) == 1:
        return inputs[0]
    return {name: np.concatenate([tensors[name] for tensors in inputs]) for name in inputs[0]}


def _split(outputs: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    """Split a batch's outputs into those of each request."""
    bounds = [0, *np.cumsum(sizes).tolist()]
    return [{name: tensor[start:end] for name, tensor in outputs.items()} for start, end in pairwise(bounds)]


def _tensor(name: str, array: NDArray[Any]) -> Any:
    # With numpy 2 `Tensor(name, array)` silently sends nothing.
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # Triton renames it to `used_dlpack`. Numpy 1 does not recognise that name, frees the tensor, and crashes.
    PyCapsule_SetName(capsule, USED)
    return tensor


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
