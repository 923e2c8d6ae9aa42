"""Labels of ImageNet's validation images, which all lie in one folder: `val/ILSVRC2012_val_00000001.JPEG`."""

import csv
import io
from collections.abc import Callable
from pathlib import PurePath

from coserve_training.data.files import Files, StoredFile
from coserve_training.data.matlab import read_matlab
from coserve_training.errors import DataError

# Two files in the folder `data` of the development kit ILSVRC2012_devkit_t12 (its readme.txt, section 2.2).
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
CLASSES = "meta.mat"
# A file of Kaggle's imagenet-object-localization-challenge.
SOLUTION = "LOC_val_solution.csv"


def label_validation_images(files: Files) -> None:
    """Assign validation images without class folders to their classes.

    Raises:
        DataError: if no file holds their classes, or the file is damaged or lacks an image.
    """
    if not files.unlabelled:
        return
    where = PurePath(files.unlabelled[0].name).parent
    if SOLUTION in files.truth:
        source = files.truth[SOLUTION]
        label_of = _solution(files.truth[SOLUTION])
    elif TRUTH in files.truth and CLASSES in files.truth:
        source = files.truth[TRUTH]
        label_of = _development_kit(files.truth[TRUTH], files.truth[CLASSES])
    else:
        raise DataError(
            f"{where} holds {len(files.unlabelled)} images outside class folders, and no file with their "
            f"classes was found; for ImageNet, add {SOLUTION} (Kaggle) or the unpacked ILSVRC2012_devkit_t12"
        )
    by_class = files.by_split.setdefault("val", {})
    for file in files.unlabelled:
        label = label_of(PurePath(file.path).stem)
        if label is None:
            raise DataError(f"{source.name} has no class for {file.name}")
        by_class.setdefault(label, []).append(file)


def _solution(file: StoredFile) -> Callable[[str], str | None]:
    """Read rows `ImageId,PredictionString`: a name and one or more boxes such as `n03995372 85 1 499 272`."""
    try:
        with file.open() as stream:
            rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig"))
            labels = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (OSError, ValueError, KeyError, AttributeError, IndexError, csv.Error) as error:
        raise DataError(f"{file.name}: damaged; expected rows of ImageId,PredictionString") from error
    return labels.get


def _development_kit(truth: StoredFile, classes: StoredFile) -> Callable[[str], str | None]:
    """Read one class number per line for the images 1, 2, …, and each number's WordNet name in `synsets`."""
    synsets = read_matlab(classes, "synsets")["synsets"]
    try:
        numbers = [int(number.item()) for number in synsets["ILSVRC2012_ID"]]
        names = dict(zip(numbers, synsets["WNID"], strict=True))
        with truth.open() as stream:
            labels = [str(names[int(line)]) for line in stream.read().split()]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{truth.name} and {classes.name} do not belong together, or are damaged") from error

    def label_of(stem: str) -> str | None:
        number = stem.rsplit("_", 1)[-1]
        return labels[int(number) - 1] if number.isdecimal() and 0 < int(number) <= len(labels) else None

    return label_of
