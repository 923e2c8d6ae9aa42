"""Stopping early: not every image goes to every member."""

from typing import Literal

from pydantic import Field

from coserve_server.settings.section import Section

EarlyStop = Literal["off", "loaded", "always"]
"""When images stop early: never, while images wait for the engine, or at any time."""


class EarlyStopSettings(Section):
    """Stopping early."""

    early_stop: EarlyStop = "off"
    """When members answer one after another until an image's answer is confident enough: `off` for never,
    `loaded` while images wait for the engine, or `always`; a request can choose for itself."""
    early_stop_loss: float = Field(0, ge=0, lt=1)
    """Top-1 accuracy that stopping early may lose, as a fraction; of the losses for which an ensemble is
    calibrated (0, 0.001 and 0.005), the largest up to this one counts."""
    early_stop_confidence: float | None = Field(None, gt=0, lt=1)
    """Probability of the likeliest class above which an image's answer is confident enough, for ensembles
    that are not calibrated for stopping early; by default, all their members answer."""
