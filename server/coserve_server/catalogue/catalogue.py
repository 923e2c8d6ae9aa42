"""The models that requests may name, and whether they can answer."""

from collections.abc import Collection, Mapping, Sequence

from coserve_server.catalogue.attempts import Attempt
from coserve_server.engines.base import Inventory
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import InvalidParametersError, NoQuorumError, UnknownModelError
from coserve_server.settings import Settings


class Catalogue:
    """The models being served: an engine's ensembles, selected by the settings.

    Attributes:
        rejected: why the newest files of a model are not served, by name; an older version may be. Written by
            the reloader.
        attempts: by name, the files that are served, or else those that cannot be. Written by the reloader.
        unloaded: names of models that clients have unloaded, and may load again. Written by the reloader.
        unreadable: why the repository cannot be read as a whole; None if it can. Written by the reloader.
        elsewhere: faults of the server's other processes. Written by the worker, if there are several.
    """

    def __init__(self, inventory: Inventory, settings: Settings) -> None:
        self.rejected: Mapping[str, str] = {}
        self.attempts: Mapping[str, Attempt] = {}
        self.unloaded: Collection[str] = ()
        self.unreadable: str | None = None
        self.elsewhere: Sequence[str] = ()
        self._inventory = inventory
        self._settings = settings
        self._draining = False

    @property
    def ensembles(self) -> Mapping[str, Ensemble]:
        """The served ensembles in their newest version, by name."""
        return self._inventory.ensembles

    @property
    def load_errors(self) -> Mapping[str, str]:
        """Why a model, or its newest version, could not be loaded, by name."""
        return {**self._inventory.load_errors, **self.rejected}

    @property
    def not_served(self) -> Mapping[str, str]:
        """Why models without a served version could not be loaded, by name."""
        return {name: error for name, error in self.load_errors.items() if name not in self.ensembles}

    def models(self) -> list[Ensemble]:
        """Return all that a request may name: every version of the ensembles and, if served, of members."""
        whole = [version for name in self.ensembles for version in self._inventory.versions(name)]
        if not self._settings.serve_members:
            return whole
        alone = [ensemble.alone(member) for ensemble in whole for member in ensemble.members]
        members = {(model.name, model.version): model for model in alone if model.name not in self.ensembles}
        return [*whole, *members.values()]

    def versions(self, name: str) -> Sequence[Ensemble]:
        """Return the versions of an ensemble, or of a single member, that a request may name, newest last."""
        if name in self.ensembles or not self._settings.serve_members:
            return self._inventory.versions(name)
        return sorted(
            (model for model in self.models() if model.name == name), key=lambda one: int(one.version)
        )

    def ensemble(self, name: str | None, version: str | None = None) -> Ensemble:
        """Look up an ensemble or a single member by name; None means the default, or the only ensemble.

        Args:
            version: None for the newest.

        Raises:
            UnknownModelError: there is no model of that name, or it lacks that version.
            InvalidParametersError: no name, no default, and several ensembles are served.
            NoQuorumError: the model may exist, but the engine cannot run it now.
        """
        served = self.ensembles
        if name is None:
            name = self._settings.default_model
        if name is None and len(served) == 1:
            (name,) = served
        if name is not None:
            if version is None and name in served:
                return served[name]
            if versions := self.versions(name):
                return _of_version(versions, version)
        if reason := self._why_missing(name):
            raise NoQuorumError(reason)
        if name is None:
            raise InvalidParametersError(f"model: no name given and several are served; {self._choice()}")
        raise UnknownModelError(f"model {name!r} is not served; {self._choice()}")

    def quorum(self, ensemble: Ensemble) -> int:
        """Return how many of the ensemble's members must answer."""
        size = len(ensemble.members)
        return min(self._settings.min_members or size, size)

    def ready(self, ensemble: Ensemble) -> bool:
        """Return whether enough members can answer."""
        return self.fault(ensemble) is None

    def ready_members(self, ensemble: Ensemble) -> int:
        """Return how many members can answer."""
        return len(self._inventory.ready_members(ensemble))

    def faults(self) -> list[str]:
        """Return why some ensemble cannot answer; empty if every one has its quorum in every process."""
        stopping = ["the server is stopping"] if self._draining else []
        return [*self.own_faults(), *stopping, *self.elsewhere]

    def own_faults(self) -> list[str]:
        """Return the faults of this process, which may have several beside it."""
        faults = [*self._inventory.faults(), *self._why_nothing()]
        default = self._settings.default_model
        if default is not None and default not in self.ensembles:
            reason = self.rejected.get(default) or self._choice()
            faults.append(f"default model {default!r} is not served; {reason}")
        for name in self.ensembles:
            faults.extend(filter(None, map(self.fault, self._inventory.versions(name))))
        return faults

    def fault(self, ensemble: Ensemble) -> str | None:
        """Return why an ensemble cannot answer; None while it has its quorum."""
        ready = self._inventory.ready_members(ensemble)
        quorum = self.quorum(ensemble)
        if len(ready) >= quorum:
            return None
        missing = ", ".join(member.name for member in ensemble.members if member.name not in ready)
        needed = "1 member is" if quorum == 1 else f"{quorum} members are"
        return f"{ensemble.name}: {needed} needed, not ready: {missing}"

    def drain(self) -> None:
        """Report not ready from now on; requests are still answered."""
        self._draining = True

    def _why_missing(self, name: str | None) -> str | None:
        if name is None:
            missing = self._inventory.why_missing(name)
            return missing and "; ".join([missing, *self._why_nothing()])
        if not self.ensembles and self.unreadable:
            return self.unreadable
        return self.rejected.get(name) or self._inventory.why_missing(name)

    def _why_nothing(self) -> list[str]:
        """Return why nothing of the repository is served; empty while something is."""
        if self.ensembles:
            return []
        return [self.unreadable] if self.unreadable else list(self.rejected.values())

    def _choice(self) -> str:
        return f"choose from {', '.join(self.ensembles)}" if self.ensembles else "no ensemble is"


def _of_version(versions: Sequence[Ensemble], version: str | None) -> Ensemble:
    """Return the newest version, or the one named."""
    if version is None:
        return versions[-1]
    # Folders of versions may be named with leading zeros, and so may requests.
    number = version.lstrip("0")
    for model in versions:
        if number and model.version.lstrip("0") == number:
            return model
    known = ", ".join(repr(model.version) for model in versions)
    raise UnknownModelError(f"model {versions[-1].name!r} has no version {version!r}; it has {known}")
