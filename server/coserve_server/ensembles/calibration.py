"""Temperatures that calibrate an ensemble's probabilities: `provenance.calibration`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
"""Divisor of the logits before the softmax (arXiv 1706.04599). Its range keeps all logits finite."""


class Calibration(BaseModel):
    """Temperatures by the number of averaged members; keys that serving does not use are ignored."""

    model_config = ConfigDict(frozen=True)

    temperatures: dict[PositiveInt, Temperature] = {}

    def temperature(self, members: int) -> float:
        """Return the temperature for the mean of this number of members' logits; 1 if none was fitted."""
        return self.temperatures.get(members, 1.0)


UNCALIBRATED = Calibration()
