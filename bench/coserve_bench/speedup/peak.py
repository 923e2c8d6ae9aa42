"""Measures the machine's peak: fp32 operations per second of a large matrix product in ONNX Runtime."""

import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from coserve_bench.speedup.devices import Devices
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime import gpus, replica
from coserve_server.engines.onnxruntime.sessions import CPU

SIZES = {"cores": 1536, "streams": 8192, "gpus": 8192}
"""Rows of the square matrices, by kind of device; larger ones are not faster."""
RUNS = 5


def measure_peak(devices: Devices) -> dict[str, float]:
    """Return the peak of one device, and of all that one network can use, in GFLOP/s.

    A multiply-add counts as two operations. The best of `RUNS` counts. The peak of several GPUs is one GPU's
    times their number.
    """
    one = _gflops(devices, 1, devices.one_core.ids)
    if devices.gpus:
        return {"one_device": one, "all_devices": one * devices.count}
    if devices.cores.count == 1:
        return {"one_device": one, "all_devices": one}
    return {"one_device": one, "all_devices": _gflops(devices, devices.cores.count, devices.cores.ids)}


def _gflops(devices: Devices, threads: int, ids: tuple[int, ...] | None) -> float:
    lane = Lane("peak", ids)
    try:
        return lane.submit(_best, devices, threads).result()
    finally:
        lane.close()


def _best(devices: Devices, threads: int) -> float:
    size = SIZES[devices.kind]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    provider = gpus.provider(devices.gpus[0], EngineOptions()) if devices.gpus else CPU
    session = ort.InferenceSession(_product(size), options, [provider], enable_fallback=0)
    where = (replica.DEVICE, devices.gpus[0]) if devices.gpus else ("cpu", 0)
    # Inputs and output stay on the device, so that no copy is timed.
    binding = session.io_binding()
    values = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    for name in ("a", "b"):
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(values, *where))
    binding.bind_ortvalue_output(
        "product", ort.OrtValue.ortvalue_from_shape_and_type((size, size), np.float32, *where)
    )
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def _product(size: int) -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in "ab"]
    product = helper.make_tensor_value_info("product", TensorProto.FLOAT, [size, size])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["product"])], "peak", values, [product]
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    return bytes(model.SerializeToString())
