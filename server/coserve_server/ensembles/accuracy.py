"""What was measured of an ensemble's subsets of members before it was served: `provenance.accuracy`."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from coserve_server.images.preprocess import Finite


class Measured(BaseModel):
    """What some members reached on a test set; keys that serving does not use are ignored."""

    model_config = ConfigDict(frozen=True)

    top1: Finite | None = None


class Subset(Measured):
    """What the mean of these members, by index, reached."""

    members: tuple[NonNegativeInt, ...]


class Accuracy(BaseModel):
    """The accuracy of the whole ensemble, of each member, and of subsets of them."""

    model_config = ConfigDict(frozen=True)

    ensemble: Measured = Measured()
    members: tuple[Measured, ...] = ()
    subsets: tuple[Subset, ...] = ()

    def of_member(self, index: int) -> "Accuracy":
        """What was measured of one member alone."""
        return Accuracy(ensemble=self.members[index]) if index < len(self.members) else Accuracy()

    def top1(self, used: Sequence[int], size: int) -> float | None:
        """The measured share of right first answers of the members `used`; None where nobody measured it.

        Args:
            used: indices of members, ascending.
            size: how many members the ensemble has.
        """
        for subset in self.subsets:
            if sorted(subset.members) == list(used):
                return subset.top1
        if len(used) == size:
            return self.ensemble.top1
        if len(used) == 1 and used[0] < len(self.members):
            return self.members[used[0]].top1
        return None
