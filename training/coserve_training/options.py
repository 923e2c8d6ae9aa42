"""Options: their types, the headings they are listed under, and checking their values."""

import functools
import math
import re
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from coserve_training.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel


class Help(NamedTuple):
    """An option's help text, and the heading it is listed under."""

    group: str
    text: str


Probability = Annotated[float, Ge(0), Lt(1)]
NotNegative = Annotated[float, Ge(0), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Count = Annotated[int, Ge(1)]
Share = Annotated[float, Gt(0), Le(1)]
Mean = Annotated[float, Ge(0), Le(1)]
Means = tuple[Mean, Mean, Mean]
Deviations = tuple[Share, Share, Share]

DATA = "Data and network"
VIEWS = "Augmentation"
OPTIMISATION = "Optimisation"
REGULARISATION = "Regularisation"
CO_TRAINING = "Co-training"


def check_options(options: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Check values of some options, and convert each to its field's type.

    Args:
        options: a dataclass of options.
        values: values by option.

    Raises:
        ConfigError: for an unknown key, or a value out of range; the message names it.
    """
    from pydantic import ValidationError

    known = [field.name for field in fields(options)]
    for name in values:
        if name not in known:
            nearest = get_close_matches(name, known, 1)
            raise ConfigError(
                f"unknown configuration {name}" + "".join(f"; the nearest is {n}" for n in nearest)
            )
    try:
        return _schema(options)(**values).model_dump(exclude_unset=True)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors()[0]
        # Drop pydantic's remark on how parsing failed.
        allowed = re.sub(", (unable|got) .*", "", problem["msg"]).replace("Input should be", "must be")
        for long, short in (("greater than or equal to", "at least"), ("less than or equal to", "at most")):
            allowed = allowed.replace(long, short)
        raise ConfigError(f"{problem['loc'][0]} {allowed}, not {problem['input']}") from error


@functools.cache
def _schema(options: type[Any]) -> "type[BaseModel]":
    from pydantic import create_model  # late, like torch: `--help` must be quick

    hints = get_type_hints(options, include_extras=True)
    definitions: Any = {name: (hint, None) for name, hint in hints.items()}
    schema: type[BaseModel] = create_model(options.__name__, **definitions)
    return schema
