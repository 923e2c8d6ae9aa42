"""State shared by the applications over HTTP and gRPC: the engine, what it serves, keys, traces."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI

from coserve_server.api.app import build_app
from coserve_server.api.exposition import create_registry
from coserve_server.catalogue.control import RepositoryControl
from coserve_server.catalogue.reload import Reloader, Turn
from coserve_server.errors import EngineError, SettingsError
from coserve_server.machine.cores import Cores, usable_cores
from coserve_server.observability.totals import OwnTotals, Totals
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.key_ring import KeyRing
from coserve_server.settings import Settings

if TYPE_CHECKING:
    from coserve_server.engines.embedded.engine import EmbeddedEngine
    from coserve_server.engines.triton.engine import TritonEngine
    from coserve_server.observability.tracing import Tracer


@dataclass(frozen=True)
class Core:
    """State shared by the applications over HTTP and gRPC.

    Attributes:
        keys: the valid API keys; None to require none.
        control: loads and unloads ensembles for clients; None with the engine `triton`.
        tracer: sends traces of requests; None to send none.
        totals: what the server has counted.
    """

    classifier: Classifier
    keys: KeyRing | None
    control: RepositoryControl | None
    tracer: "Tracer | None"
    totals: Totals

    def build_app(self) -> FastAPI:
        """Build the ASGI application."""
        return build_app(self.classifier, self.keys, self.control, self.tracer, self.totals)


@asynccontextmanager
async def open_core(
    settings: Settings,
    cores: Cores | None = None,
    turn: Turn = nullcontext,
    unloaded: Collection[str] = (),
) -> AsyncIterator[Core]:
    """Start the engine and everything else the applications need; free it all at the end.

    Args:
        cores: the cores to use; None for all that the process may use.
        turn: see `Reloader`.
        unloaded: likewise.

    Raises:
        StartupError: the keys, the repository or a member is not usable.
    """
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    cores = cores or usable_cores()
    reloader = None
    async with AsyncExitStack() as stack:
        tracer = _tracer(settings)
        if tracer is not None:
            stack.push_async_callback(tracer.close)
        if settings.repository is None:
            classifier = Classifier(await _triton_engine(settings), settings, cores.count)
            stack.push_async_callback(classifier.close)
            catalogue = classifier.catalogue
            if settings.exit_on_error and (faults := [*catalogue.faults(), *catalogue.not_served.values()]):
                raise EngineError("; ".join(faults))
        else:
            engine = _embedded_engine(settings, cores)
            classifier = Classifier(engine, settings, cores.count)
            stack.push_async_callback(classifier.close)
            reloader = Reloader(settings.repository, engine, classifier.catalogue, turn, unloaded)
            await _load(reloader, settings)
            if settings.repository_poll_ms:
                watching = asyncio.create_task(reloader.watch(settings.repository_poll_ms / 1000))
                stack.callback(watching.cancel)
        registry = create_registry(classifier, classifier.metrics, reloader)
        totals = OwnTotals(registry, classifier.statistics)
        yield Core(classifier, keys, reloader, tracer, totals)


def _tracer(settings: Settings) -> "Tracer | None":
    """Return the sender of traces; None without an endpoint, and then its libraries are not even imported."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from coserve_server.observability.tracing import Tracer

        return Tracer(str(settings.otlp_endpoint))
    except ImportError as error:
        fault = f"otlp_endpoint: traces need the extra otel: pip install 'coserve[otel]' ({error})"
        raise SettingsError([fault]) from error
    # Some variables are read by the import.
    except ValueError as error:
        raise SettingsError([f"otlp_endpoint: OpenTelemetry refuses its variables: {error}"]) from error


async def _triton_engine(settings: Settings) -> "TritonEngine":
    from coserve_server.engines.triton.engine import TritonEngine

    # Triton's models may change at any time, so nothing about them can prevent the start.
    return await TritonEngine.connect(settings)


def _embedded_engine(settings: Settings, cores: Cores) -> "EmbeddedEngine":
    from coserve_server.engines.embedded.options import EngineOptions
    from coserve_server.engines.factory import create_engine

    return create_engine(EngineOptions.from_settings(settings), cores)


async def _load(reloader: Reloader, settings: Settings) -> None:
    """Load the repository, which must have the default model, sound or not, if errors may end the start."""
    await reloader.start(settings.exit_on_error)
    if settings.exit_on_error is False:
        return
    catalogue = reloader.catalogue
    default = settings.default_model
    known = {*catalogue.ensembles, *catalogue.rejected, *catalogue.unloaded}
    if default is not None and default not in known:
        choice = ", ".join(catalogue.ensembles)
        raise SettingsError([f"default_model: {default!r} is not served; choose from {choice}"])
