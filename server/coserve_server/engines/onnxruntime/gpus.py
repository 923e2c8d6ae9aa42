"""Members on NVIDIA's GPUs: each session has a CUDA stream of its own, so those on one GPU run at once.

Provider: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from coserve_server.engines.base import Batch
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.members import LoadedMember, first_line, misfit
from coserve_server.engines.onnxruntime.cuda_graphs import GRAPH_ID, NO_GRAPH, RECORDINGS, Graph
from coserve_server.engines.onnxruntime.sessions import Provider, create_session
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.errors import EngineError, SettingsError

if TYPE_CHECKING:
    from coserve_server.engines.onnxruntime.pinned_memory import PinnedMemory

CUDA, DEVICE = "CUDAExecutionProvider", "cuda"
"""ONNX Runtime's names of the provider and of its kind of device."""


def check_gpus() -> None:
    """Require an ONNX Runtime that runs networks on GPUs.

    Raises:
        SettingsError: this one does not.
    """
    available = ort.get_available_providers()
    if CUDA not in available:
        fault = (
            f"gpus: this ONNX Runtime has no {CUDA}, only {', '.join(available)}: install "
            "onnxruntime-gpu[cuda,cudnn] in place of onnxruntime"
        )
        raise SettingsError([fault])
    # CUDA's libraries may come from PyPI, where the system's loader does not look.
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def provider(gpu: int, graphs: bool = False) -> Provider:
    """The execution provider for the GPU of that number; `graphs` says whether CUDA graphs are recorded."""
    return CUDA, {"device_id": str(gpu), "enable_cuda_graph": str(int(graphs))}


def gpu_device(gpu: int) -> str:
    """What replies call the GPU of that number."""
    return f"{DEVICE}:{gpu}"


def gpu_lanes(ensemble: Ensemble, gpus: Sequence[int]) -> list[Lane]:
    """One per member; of several GPUs the members take turns."""
    return [
        Lane(f"{ensemble.name}-{i}", device=gpu_device(gpus[i % len(gpus)]))
        for i in range(len(ensemble.members))
    ]


class Upload:
    """A batch's copy on one GPU, which all members there read: the first that needs it makes it."""

    def __init__(self, gpu: int) -> None:
        self._gpu, self._making = gpu, threading.Lock()
        self._batch: Batch | None = None
        self._copy: ort.OrtValue | None = None

    def of(self, batch: Batch) -> ort.OrtValue:
        """The copy; kept until another batch's takes its place."""
        with self._making:
            if self._copy is None or self._batch is not batch:
                images = np.ascontiguousarray(batch)
                self._copy = ort.OrtValue.ortvalue_from_numpy(images, DEVICE, self._gpu)
                self._batch = batch
            return self._copy


class GpuMember(LoadedMember):
    """A member whose session runs on a GPU, and the lane that waits for it."""

    def __init__(
        self,
        member: Member,
        session: ort.InferenceSession,
        lane: Lane,
        upload: Upload,
        graphs: Mapping[int, Graph],
    ) -> None:
        super().__init__(member, lane)
        self.session, self.binding = session, session.io_binding()
        self.upload, self.graphs = upload, graphs

    def call(self) -> "_Call":
        """Prepare a run."""
        return _Call(self)

    def close(self) -> None:
        """Free what is on the GPU, while nothing is recorded there."""
        with RECORDINGS.using():
            del self.session, self.binding, self.upload, self.graphs


class _Call:
    def __init__(self, loaded: GpuMember) -> None:
        self._loaded = loaded
        self._options = ort.RunOptions()

    def infer(self, batch: Batch) -> NDArray[np.float32]:
        graph = self._loaded.graphs.get(len(batch))
        with RECORDINGS.using():
            return self._run(batch) if graph is None else graph.run(batch, self._options)

    def _run(self, batch: Batch) -> NDArray[np.float32]:
        member, binding = self._loaded.member, self._loaded.binding
        self._options.add_run_config_entry(GRAPH_ID, NO_GRAPH)
        binding.bind_ortvalue_input(member.input_name, self._loaded.upload.of(batch))
        # Bound anew each time: the last run's output has that batch's size.
        binding.bind_output(member.output_name, "cpu")
        self._loaded.session.run_with_iobinding(binding, self._options)
        logits: NDArray[np.float32]
        (logits,) = binding.copy_outputs_to_cpu()
        return logits

    def stop(self) -> None:
        self._options.terminate = True


class GpuLoader:
    """Loads members onto the GPUs that their lanes name."""

    def __init__(
        self, gpus: Sequence[int], graphs: Sequence[int] = (), pinned: "PinnedMemory | None" = None
    ) -> None:
        """Of these numbers.

        Args:
            graphs: sizes of the batches that are run as CUDA graphs.
            pinned: what is to have room for the members' batches.

        Raises:
            SettingsError: this ONNX Runtime runs nothing on GPUs.
        """
        check_gpus()
        self._gpus = {gpu_device(gpu): (gpu, Upload(gpu)) for gpu in gpus}
        self._graphs, self._pinned = graphs, pinned

    def __call__(self, ensemble: Ensemble, member: Member, lane: Lane) -> GpuMember:
        """Load a member, and record its graphs; see `embedded.members.Load`."""
        gpu, upload = self._gpus[lane.device]
        sizes = [size for size in self._graphs if size <= ensemble.max_batch_size]
        with RECORDINGS.using():
            self._reserve(ensemble, member, gpu)
            session = create_session(ensemble, member, lane.threads, provider(gpu, bool(sizes)))
        try:
            graphs = {size: Graph(session, ensemble, member, size, (DEVICE, gpu)) for size in sizes}
        # ONNX Runtime's errors share no base class but Exception.
        except Exception as error:
            reason = f"cannot be recorded as a CUDA graph: {first_line(error)}"
            raise misfit(ensemble, member, reason) from error
        return GpuMember(member, session, lane, upload, graphs)

    def _reserve(self, ensemble: Ensemble, member: Member, gpu: int) -> None:
        if self._pinned is None:
            return
        try:
            self._pinned.reserve((ensemble.max_batch_size, *ensemble.preprocessing.shape), gpu)
        except EngineError as error:
            raise misfit(ensemble, member, f"gets no pinned memory for its batches: {error}") from error
