"""Measures an ensemble in Triton: each member alone, all members together, and the ensemble."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import product
from pathlib import Path
from urllib.parse import quote

from coserve_bench.errors import BenchError
from coserve_bench.perf_analyzer.results import ALONE, ENSEMBLE, GATEWAY, TOGETHER, Measurement, Results
from coserve_bench.perf_analyzer.run import Load, PerfAnalyzer, Target
from coserve_bench.perf_analyzer.target import Times, TritonEnsemble
from coserve_bench.progress import Progress
from coserve_bench.stopping import check_stopped
from coserve_triton.server import Ports, run_triton

GATEWAY_TIMEOUT_S = 10


@contextmanager
def running_triton(repository: Path | None, address: str | None, model: str | None) -> Iterator[str]:
    """Return the gRPC address of a Triton server: the given one, or a new one that serves the repository.

    Raises:
        coserve_triton.errors.TritonError: the new server does not start.
    """
    if repository is None:
        assert address is not None
        yield address
        return
    options = ["--model-control-mode=explicit", f"--load-model={model}"] if model else []
    with run_triton(
        repository,
        lambda line: None,
        host="127.0.0.1",
        ports=Ports(),
        arguments=options,
        check=check_stopped,
    ) as server:
        yield f"{server.host}:{server.ports.grpc}"


def check_gateway(target: Target) -> None:
    """Check that a gateway has the ensemble, before the measurements, which take long.

    Raises:
        BenchError: it does not.
    """
    headers = dict(header.split(": ", 1) for header in target.headers)
    try:
        with closing(HTTPConnection(target.address, timeout=GATEWAY_TIMEOUT_S)) as connection:
            connection.request("GET", f"/v2/models/{quote(target.model)}", headers=headers)
            response = connection.getresponse()
    except (OSError, HTTPException) as error:
        raise BenchError(f"the gateway at {target.address} does not answer: {error}") from error
    if response.status != 200:
        raise BenchError(
            f"the gateway at {target.address} answers {response.status} {response.reason} for {target.model}"
        )


def measure(
    results: Results,
    ensemble: TritonEnsemble,
    address: str,
    gateway: Target | None,
    concurrencies: Sequence[int],
    program: Path,
    progress: Progress | None,
) -> None:
    """Add the measurements to the results one by one, so that Ctrl-C keeps those so far.

    Args:
        address: gRPC address of Triton.
        gateway: gateway to measure too.
        concurrencies: numbers of requests in flight.
        program: perf_analyzer, as `find_program` returns it.

    Raises:
        BenchError: perf_analyzer failed.
    """
    loads = [Load(concurrency, results.batch_size, results.requests) for concurrency in concurrencies]
    members = [Target(address, "grpc", name, ensemble.versions[name]) for name in ensemble.members]
    rounds = [(ALONE, [member]) for member in members]
    rounds.append((TOGETHER, members))
    rounds.append((ENSEMBLE, [Target(address, "grpc", ensemble.name)]))
    if gateway is not None:
        rounds.append((GATEWAY, [gateway]))
    with PerfAnalyzer(program, ensemble.input_name, ensemble.shape) as analyzer:
        for done, (load, (what, targets)) in enumerate(product(loads, rounds), start=1):
            results.measurements += _measure_together(analyzer, ensemble, load, what, targets)
            if progress is not None:
                progress("measuring", done, len(loads) * len(rounds))
    results.complete = True


def _measure_together(
    analyzer: PerfAnalyzer, ensemble: TritonEnsemble, load: Load, what: str, targets: list[Target]
) -> list[Measurement]:
    """Measure several models at the same time."""
    before = ensemble.counts()
    latencies = analyzer.run(targets, load)
    after = ensemble.counts()
    times = {name: Times.between(before[name], after[name]) for name in after}

    def models(target: Target) -> dict[str, Times]:
        if what == GATEWAY:
            return {}
        return times if what == ENSEMBLE else {target.model: times.get(target.model, Times(0, 0))}

    return [
        Measurement(what, target.model, load.concurrency, result, models(target))
        for target, result in zip(targets, latencies, strict=True)
    ]
