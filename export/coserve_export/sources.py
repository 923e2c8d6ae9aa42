"""What an export is given: a run folder, ONNX files, or a checkpoint of the paper's authors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from coserve_export.authors.archive import looks_published
from coserve_export.authors.download import is_link
from coserve_export.errors import DescriptionError

Kind = Literal["run", "onnx", "published"]


def identify_sources(sources: Sequence[str]) -> Kind:
    """Return what the sources are, by their content rather than their names.

    Args:
        sources: paths, or a link.

    Raises:
        DescriptionError: a path does not exist, or the sources cannot be exported together.
    """
    if any(map(is_link, sources)):
        if len(sources) > 1:
            raise DescriptionError("give one link alone")
        return "published"
    # os.path, unlike pathlib, also answers for names that no file can have.
    missing = [source for source in sources if not os.path.exists(source)]  # noqa: PTH110
    if missing:
        raise DescriptionError(f"{', '.join(missing)} does not exist")
    paths = [Path(source) for source in sources]
    published = [path for path in paths if looks_published(path)]
    if published and len(paths) > 1:
        raise DescriptionError(f"{published[0]} is a checkpoint with all members; give it alone")
    if published:
        return "published"
    if all(path.is_file() for path in paths):
        return "onnx"
    if len(paths) == 1 and paths[0].is_dir():
        return "run"
    raise DescriptionError("give either one run folder, or ONNX files alone")
