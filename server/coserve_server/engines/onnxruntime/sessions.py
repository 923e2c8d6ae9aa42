"""A member's network as ONNX Runtime runs it."""

import functools
import logging

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from coserve_server.engines.base import Batch
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.members import LoadedMember, check_tensors, first_line, misfit
from coserve_server.ensembles.ensemble import Ensemble, Member

logger = logging.getLogger(__name__)

WARNING, FATAL = 2, 4
"""ONNX Runtime's numbers of severities."""

Provider = tuple[str, dict[str, str]]
"""Name and options of an execution provider."""

CPU: Provider = ("CPUExecutionProvider", {})


def _forward(severity: int, _category: str, member: str, _place: str, message: str) -> None:
    """Put a warning into the server's log; errors come as exceptions anyway."""
    if severity == WARNING:
        _warn(member, message)


@functools.lru_cache(1000)
def _warn(member: str, message: str) -> None:
    """Each once: some would come again with every batch."""
    logger.warning("ONNX Runtime: %s: %s", member, message)


# Older versions can only write to standard error, past the server's log, or be silent.
_FORWARDS = hasattr(ort, "set_default_logger_callback")
if _FORWARDS:
    ort.set_default_logger_callback(_forward, WARNING)

# One arena for all sessions: of arenas of their own each keeps what its largest batch took, used or not.
ort.create_and_register_allocator(
    ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT), None
)


class CpuMember(LoadedMember):
    """A member, its session, and the lane that runs it."""

    def __init__(self, member: Member, session: ort.InferenceSession, lane: Lane) -> None:
        super().__init__(member, lane)
        self.session = session

    def call(self) -> "_Call":
        """Prepare a run."""
        return _Call(self.session, self.member)


class _Call:
    def __init__(self, session: ort.InferenceSession, member: Member) -> None:
        self._session, self._member = session, member
        self._options = ort.RunOptions()

    def infer(self, batch: Batch) -> NDArray[np.float32]:
        member = self._member
        logits: NDArray[np.float32]
        (logits,) = self._session.run([member.output_name], {member.input_name: batch}, self._options)
        return logits

    def stop(self) -> None:
        self._options.terminate = True


def load_member(ensemble: Ensemble, member: Member, lane: Lane) -> CpuMember:
    """Load a member for the CPU; see `embedded.members.Load`."""
    return CpuMember(member, create_session(ensemble, member, lane.threads), lane)


def create_session(
    ensemble: Ensemble, member: Member, threads: int, provider: Provider = CPU
) -> ort.InferenceSession:
    """Load a network; with one thread, what runs on the CPU runs on the thread that calls it.

    Raises:
        EngineError: it cannot be loaded, or lacks a tensor its ensemble names.
    """
    options = ort.SessionOptions()
    options.log_severity_level = WARNING if _FORWARDS else FATAL
    options.logid = str(member.model_path)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A pool that spins while it waits takes the cores from the member that runs beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Weights outlive batches: between these in the arena they would leave gaps when they are freed.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    on_cpu = provider[0] == CPU[0]
    if not on_cpu:
        # Rather an error than a network that runs in part on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(member.model_path, options, [provider], enable_fallback=0)
    # ONNX Runtime's errors share no base class but Exception.
    except Exception as error:
        fault = "cannot be loaded" if on_cpu else f"cannot be run by {provider[0]} alone"
        raise misfit(ensemble, member, f"{fault}: {first_line(error)}") from error
    inputs = {tensor.name: tensor.type for tensor in session.get_inputs()}
    outputs = {tensor.name: tensor.type for tensor in session.get_outputs()}
    check_tensors(ensemble, member, inputs, outputs, "tensor(float)")
    return session
