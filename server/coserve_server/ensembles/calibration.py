"""What calibrates an ensemble's answers: `provenance.calibration`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
"""Divisor of the logits before the softmax (arXiv 1706.04599). Its range keeps all logits finite."""
Coverage = Annotated[float, Field(gt=0, lt=1)]
"""Fraction of images whose prediction set holds the true class."""
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SetCalibration(BaseModel):
    """Thresholds of one kind of prediction set, by coverage and by the number of averaged members."""

    model_config = ConfigDict(frozen=True)

    thresholds: dict[Coverage, dict[PositiveInt, NotNegative]]

    def coverages(self, members: int) -> list[float]:
        """Return the coverages with a threshold for this number of members, ascending."""
        return sorted(coverage for coverage, sizes in self.thresholds.items() if members in sizes)


class RapsCalibration(SetCalibration):
    """Thresholds of RAPS (arXiv 2009.14193), with its regularisation.

    Attributes:
        penalty: added to the score of a class for each rank beyond the free classes; lambda in the paper.
        free_classes: number of classes without a penalty; k_reg in the paper.
    """

    penalty: NotNegative
    free_classes: PositiveInt


class SetCalibrations(BaseModel):
    """Thresholds of both kinds of prediction sets; None for a kind that was not calibrated."""

    model_config = ConfigDict(frozen=True)

    lac: SetCalibration | None = None
    raps: RapsCalibration | None = None


class EarlyStopping(BaseModel):
    """A confidence at which members may stop; keys that serving does not use are ignored.

    Attributes:
        loss: top-1 accuracy that stopping there may lose, as a fraction.
        confidence: probability of the likeliest class to exceed; 1 if all members have to answer.
        top1: top-1 accuracy measured with it; None if it was not.
    """

    model_config = ConfigDict(frozen=True)

    loss: NotNegative
    confidence: Annotated[float, Field(ge=0, le=1)]
    top1: Annotated[float, Field(ge=0, le=1)] | None = None


class Calibration(BaseModel):
    """Temperatures by the number of averaged members, thresholds and confidences.

    Keys that serving does not use are ignored.
    """

    model_config = ConfigDict(frozen=True)

    temperatures: dict[PositiveInt, Temperature] = {}
    prediction_sets: SetCalibrations = SetCalibrations()
    early_stopping: tuple[EarlyStopping, ...] = ()

    def temperature(self, members: int) -> float:
        """Return the temperature for the mean of this number of members' logits; 1 if none was fitted."""
        return self.temperatures.get(members, 1.0)


UNCALIBRATED = Calibration()
