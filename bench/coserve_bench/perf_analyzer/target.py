"""An ensemble in a running Triton server: its models, and the server's statistics about them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coserve_bench.errors import BenchError

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient


@dataclass(frozen=True)
class Counts:
    """Triton's statistics about one model since its start.

    Attributes:
        requests: number of requests answered.
        queue_ms, compute_ms: time spent waiting and computing, over all requests.
    """

    requests: int
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True)
class Times:
    """Average milliseconds per request, spent waiting and computing."""

    queue_ms: float
    compute_ms: float

    @classmethod
    def between(cls, before: Counts, after: Counts) -> "Times":
        """Return the times of the requests answered between two counts."""
        requests = max(1, after.requests - before.requests)
        return cls(
            (after.queue_ms - before.queue_ms) / requests, (after.compute_ms - before.compute_ms) / requests
        )


class TritonEnsemble:
    """An ensemble on a Triton server.

    Attributes:
        name: the ensemble's name.
        members, mean: names of its models.
        versions: the version that the ensemble runs, by model; empty for the newest.
        input_name: name of the image tensor.
        shape: its shape, without the batch.
        server_version: Triton's version.
    """

    def __init__(self, client: "InferenceServerClient", name: str) -> None:
        from tritonclient.grpc.model_config_pb2 import TYPE_FP32

        self._client = client
        self.name = name
        config = client.get_model_config(name).config
        steps = config.ensemble_scheduling.step
        if len(steps) < 2 or len(config.input) != 1:
            raise BenchError(f"{name} is not an ensemble of members and their mean")
        self.versions = {step.model_name: str(max(step.model_version, 0) or "") for step in steps}
        *self.members, self.mean = [step.model_name for step in steps]
        images = config.input[0]
        self.input_name = images.name
        self.shape = tuple(images.dims)
        if images.data_type != TYPE_FP32 or min(self.shape, default=0) < 1:
            raise BenchError(f"{name} cannot be measured: {images.name} must be FP32 and of a fixed size")
        self.server_version = client.get_server_metadata().version

    def counts(self) -> dict[str, Counts]:
        """Return the server's statistics so far, by model."""
        models = {}
        for model in (*self.members, self.mean):
            versions = self._client.get_inference_statistics(model, self.versions[model]).model_stats
            # Without a version, Triton lists all that it serves, and runs the newest.
            stats = max(versions, key=lambda one: int(one.version)).inference_stats
            compute = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
            models[model] = Counts(stats.success.count, stats.queue.ns / 1e6, compute / 1e6)
        return models


@contextmanager
def connect(address: str, name: str | None) -> Iterator[TritonEnsemble]:
    """Connect to the Triton server at `host:port` (gRPC), and find an ensemble there.

    Args:
        name: the ensemble's name; None if there is only one.

    Raises:
        BenchError: the server cannot be reached, or does not have the ensemble.
    """
    import tritonclient.grpc as grpc

    # The proxy of the environment would be measured too, and cannot reach this machine's loopback.
    with grpc.InferenceServerClient(address, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
        try:
            yield TritonEnsemble(client, name or _only_ensemble(client, address))
        except grpc.InferenceServerException as error:
            raise BenchError(f"Triton at {address}: {error.message()}") from error


def _only_ensemble(client: "InferenceServerClient", address: str) -> str:
    loaded: list[str] = [m.name for m in client.get_model_repository_index().models if m.state == "READY"]
    ensembles = [
        name
        for name in dict.fromkeys(loaded)
        if client.get_model_config(name).config.HasField("ensemble_scheduling")
    ]
    if len(ensembles) != 1:
        raise BenchError(
            f"Triton at {address} serves {len(ensembles)} ensembles ({', '.join(ensembles) or 'none'}); "
            "choose one with --model"
        )
    return ensembles[0]
