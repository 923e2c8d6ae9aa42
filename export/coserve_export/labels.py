"""Reading labels from a text file."""

from pathlib import Path

from coserve_export.errors import DescriptionError


def read_labels(path: Path) -> list[str]:
    """Read one label per line, in order of class index, ignoring blank lines at the end.

    Raises:
        DescriptionError: the file is not UTF-8 text, has no labels, or has a blank line between labels.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise DescriptionError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DescriptionError(f"{path} is not UTF-8 text") from error
    labels = [line.strip() for line in text.rstrip().split("\n")]
    if labels == [""]:
        raise DescriptionError(f"{path} has no labels")
    if "" in labels:
        raise DescriptionError(
            f"{path} line {labels.index('') + 1} is blank; every line must be the label of a class"
        )
    return labels
