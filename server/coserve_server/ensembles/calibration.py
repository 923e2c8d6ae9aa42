"""Temperatures that make an ensemble's probabilities honest: `provenance.calibration`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
"""Divides logits before the softmax (arXiv 1706.04599); within the range, any logits stay finite."""


class Calibration(BaseModel):
    """Temperatures by how many members' logits are averaged; keys that serving does not use are ignored."""

    model_config = ConfigDict(frozen=True)

    temperatures: dict[PositiveInt, Temperature] = {}

    def temperature(self, members: int) -> float:
        """That of the mean of so many members' logits; 1 where none was fitted."""
        return self.temperatures.get(members, 1.0)


UNCALIBRATED = Calibration()
