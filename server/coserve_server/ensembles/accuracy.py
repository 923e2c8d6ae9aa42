"""Measured accuracy of an ensemble and of subsets of its members: `provenance.accuracy`."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from coserve_server.ensembles.preprocessing import Finite


class Measured(BaseModel):
    """The scores of some members on a test set; keys that serving does not use are ignored."""

    model_config = ConfigDict(frozen=True)

    top1: Finite | None = None


class Subset(Measured):
    """The scores of the mean of these members, by index."""

    members: tuple[NonNegativeInt, ...]


class Accuracy(BaseModel):
    """The scores of the whole ensemble, of each member, and of subsets of the members."""

    model_config = ConfigDict(frozen=True)

    ensemble: Measured = Measured()
    members: tuple[Measured, ...] = ()
    subsets: tuple[Subset, ...] = ()

    def for_member(self, index: int) -> "Accuracy":
        """Return the scores of one member as those of an ensemble of its own."""
        return Accuracy(ensemble=self.members[index]) if index < len(self.members) else Accuracy()

    def top1(self, used: Sequence[int], size: int) -> float | None:
        """Return the measured top-1 accuracy of the members `used`; None if it was not measured.

        Args:
            used: indices of members, ascending.
            size: number of members of the ensemble.
        """
        for subset in self.subsets:
            if sorted(subset.members) == list(used):
                return subset.top1
        if len(used) == size:
            return self.ensemble.top1
        if len(used) == 1 and used[0] < len(self.members):
            return self.members[used[0]].top1
        return None
