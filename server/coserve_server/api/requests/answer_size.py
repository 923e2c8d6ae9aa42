"""Limits the size of answers, before the work is done."""

from coserve_server.errors import InvalidParametersError
from coserve_server.settings import Settings

INLINE_PREDICTIONS = 2000
"""Answers of more predictions are written on a thread."""
INLINE_VALUES = 2**13
"""Likewise answers for which more logits are ranked or written."""


def check_predictions(settings: Settings, images: int, per_image: int) -> int:
    """Return the number of predictions in an answer.

    Args:
        per_image: predictions per image; for a prediction set, as many as there are classes.

    Raises:
        InvalidParametersError: there would be too many.
    """
    count = images * per_image
    if count > settings.max_predictions:
        raise InvalidParametersError(
            f"the answer would have up to {count} predictions, {per_image} for each image; at most "
            f"{settings.max_predictions} are allowed, so ask for fewer classes, or send fewer images at once"
        )
    return count
