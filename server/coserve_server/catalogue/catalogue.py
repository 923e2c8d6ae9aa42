"""What requests may ask for, and whether it can answer."""

from collections.abc import Mapping, Sequence

from coserve_server.engines.base import Engine
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import InvalidParametersError, NoQuorumError, UnknownModelError
from coserve_server.observability.record import current
from coserve_server.settings import Settings


class Catalogue:
    """The ensembles of one engine, as the settings have them served."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._draining = False

    @property
    def ensembles(self) -> Mapping[str, Ensemble]:
        """What is served, by name."""
        return self._engine.ensembles

    def models(self) -> list[Ensemble]:
        """What a request may name: every version of the ensembles and, where served, of single members."""
        whole = [version for name in self.ensembles for version in self._engine.versions(name)]
        if not self._settings.serve_members:
            return whole
        alone = [ensemble.alone(member) for ensemble in whole for member in ensemble.members]
        known = {
            (member.name, member.version): member for member in alone if member.name not in self.ensembles
        }
        return [*whole, *known.values()]

    def versions(self, name: str) -> Sequence[Ensemble]:
        """The versions of an ensemble, or of a member alone, that a request may name, newest last."""
        if name in self.ensembles or not self._settings.serve_members:
            return self._engine.versions(name)
        return sorted(
            (model for model in self.models() if model.name == name), key=lambda one: int(one.version)
        )

    def ensemble(self, name: str | None, version: str | None = None) -> Ensemble:
        """The ensemble, or the member alone, of that name; with None the default, or the only ensemble.

        Args:
            version: None for the newest.

        Raises:
            UnknownModelError: there is none of that name, or it has no such version.
            InvalidParametersError: no name, no default, and several are served.
            NoQuorumError: there may be one, but the engine cannot run it just now.
        """
        served = self.ensembles
        name = name if name is not None else self._settings.default_model
        if name is None and len(served) == 1:
            (name,) = served
        if name is not None:
            ensemble = None
            if version is None and name in served:
                ensemble = served[name]
            elif versions := self.versions(name):
                ensemble = _of_version(versions, version)
            if ensemble is not None:
                current().ensemble = ensemble
                return ensemble
        if reason := self._engine.absence(name):
            raise NoQuorumError(reason)
        if name is None:
            raise InvalidParametersError(f"model: no name given and several are served; {self._choice()}")
        raise UnknownModelError(f"model {name!r} is not served; {self._choice()}")

    def quorum(self, ensemble: Ensemble) -> int:
        """How many of the ensemble's members must answer."""
        size = len(ensemble.members)
        return min(self._settings.min_members or size, size)

    def ready(self, ensemble: Ensemble) -> bool:
        """Whether enough members can answer."""
        return self.fault(ensemble) is None

    def faults(self) -> list[str]:
        """Why some ensemble cannot answer; empty where every one has its quorum."""
        faults = list(self._engine.faults())
        if self._draining:
            faults.append("the server is stopping")
        default = self._settings.default_model
        if default is not None and default not in self.ensembles:
            faults.append(f"default model {default!r} is not served; {self._choice()}")
        for name in self.ensembles:
            faults.extend(filter(None, map(self.fault, self._engine.versions(name))))
        return faults

    def fault(self, ensemble: Ensemble) -> str | None:
        """Why an ensemble cannot answer; None while it has its quorum."""
        ready = self._engine.ready_members(ensemble)
        if len(ready) >= self.quorum(ensemble):
            return None
        missing = ", ".join(member.name for member in ensemble.members if member.name not in ready)
        return f"{ensemble.name}: {self.quorum(ensemble)} members are needed, not ready: {missing}"

    def drain(self) -> None:
        """Count as not ready from now on; requests are still answered."""
        self._draining = True

    def _choice(self) -> str:
        return f"choose from {', '.join(self.ensembles) or 'nothing'}"


def _of_version(versions: Sequence[Ensemble], version: str | None) -> Ensemble:
    """The newest, or the one of that version."""
    if version is None:
        return versions[-1]
    for model in versions:
        if model.version == version:
            return model
    known = ", ".join(repr(model.version) for model in versions)
    raise UnknownModelError(f"model {versions[-1].name!r} has no version {version!r}; it has {known}")
