"""Reading label names from a text file."""

from pathlib import Path

from coserve_export.errors import DescriptionError


def read_labels(path: Path) -> list[str]:
    """Read one label per line, by class index; blank lines at the end do not count.

    Raises:
        DescriptionError: for a file that is no UTF-8 text, or has a blank line between labels.
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
            f"{path} line {labels.index('') + 1} is blank; every line is the label of a class"
        )
    return labels
