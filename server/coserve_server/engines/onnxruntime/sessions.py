"""Members as ONNX Runtime sessions."""

import functools
import logging
import threading

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from coserve_server.engines.base import Images
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.members import LoadedMember, check_tensors, misfit
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.errors import first_line
from coserve_server.files import printable

logger = logging.getLogger(__name__)

# ONNX Runtime's severity levels.
WARNING = 2
ERROR = 3
FATAL = 4

Provider = tuple[str, dict[str, str]]
"""An execution provider's name and options."""

CPU: Provider = ("CPUExecutionProvider", {})
CPU_FALLBACK = "fallback to CPU EP has been explicitly disabled"
"""Part of ONNX Runtime's message about operators that a provider lacks."""

_loading = threading.local()
"""What ONNX Runtime says is wrong while this thread makes a session, in `errors`."""


def _forward(severity: int, _category: str, member: str, _place: str, message: str) -> None:
    """Write a warning to the server's log, and keep an error for `create_session`.

    While batches run, errors are raised as exceptions too. While a session is made, not all are: a provider
    that cannot be used is left out.
    """
    if severity == WARNING:
        _warn(member, message)
    elif severity == ERROR and hasattr(_loading, "errors"):
        _loading.errors.append(message)


@functools.lru_cache(1000)
def _warn(member: str, message: str) -> None:
    """Log each warning once: some repeat with every batch."""
    logger.warning("ONNX Runtime: %s: %s", member, message)


# Older versions write to standard error, bypassing the server's log, or not at all.
_FORWARDS = hasattr(ort, "set_default_logger_callback")
if _FORWARDS:
    ort.set_default_logger_callback(_forward, WARNING)

# One arena for all sessions: a session's own would keep what its largest batch took.
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
        self._session = session
        self._member = member
        self._options = ort.RunOptions()

    def infer(self, images: Images) -> NDArray[np.float32]:
        member = self._member
        logits: NDArray[np.float32]
        (logits,) = self._session.run([member.output_name], {member.input_name: images}, self._options)
        return logits

    def stop(self) -> None:
        self._options.terminate = True


def load_member(ensemble: Ensemble, member: Member, lane: Lane) -> CpuMember:
    """Load a member onto the CPU; see `embedded.members.Load`."""
    return CpuMember(member, create_session(ensemble, member, lane.threads), lane)


def create_session(
    ensemble: Ensemble, member: Member, threads: int, provider: Provider = CPU
) -> ort.InferenceSession:
    """Load a network. With one thread, work on the CPU runs on the calling thread.

    Raises:
        EngineError: the network cannot be loaded, or lacks a tensor that its ensemble names.
    """
    options = ort.SessionOptions()
    options.log_severity_level = WARNING if _FORWARDS else FATAL
    options.logid = printable(str(member.model_path))
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning idle pool would take the cores from the other members.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Weights outlive batches; in the arena, freeing them would leave gaps.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    on_cpu = provider[0] == CPU[0]
    if not on_cpu:
        # Fail rather than run parts of the network on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    _loading.errors = []
    try:
        session = ort.InferenceSession(member.model_path, options, [provider], enable_fallback=0)
    # ONNX Runtime's errors share no base class but Exception.
    except Exception as error:
        if on_cpu:
            raise misfit(ensemble, member, f"cannot be loaded: {first_line(error)}") from error
        # The first error is the cause of those after it.
        reason = first_line(next(iter(_loading.errors), error))
        if CPU_FALLBACK in reason:
            reason = "it has operators that run on the CPU only, as quantised networks have"
        raise misfit(ensemble, member, f"cannot be run by {provider[0]} alone: {reason}") from error
    finally:
        del _loading.errors
    inputs = {tensor.name: tensor.type for tensor in session.get_inputs()}
    outputs = {tensor.name: tensor.type for tensor in session.get_outputs()}
    check_tensors(ensemble, member, inputs, outputs, "tensor(float)")
    return session
