"""AutoAugment's operations and tables, compared with what the paper's authors publish.

`operations.npz` holds what each operation of their code makes of `input`, by operation, index of magnitude
and sign. `sub_policies.csv` holds their tables.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coserve_training.views.autoaugment import AMOUNTS, POLICIES, SIGNED, apply_operation
from coserve_training.views.operations import MOVES, RECOLOURS

HERE = Path(__file__).parent
OPERATIONS = [name for name in (*MOVES, *RECOLOURS) if name != "SolarizeAdd"]


def published_name(name: str) -> str:
    return name[0].lower() + name[1:] if name.startswith(("Shear", "Translate")) else name.lower()


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_the_published_ones_at_every_magnitude_and_sign(name: str) -> None:
    published = np.load(HERE / "operations.npz")
    image = Image.fromarray(published["input"])
    for index in range(10):
        for mark, sign in {"+": 1, "-": -1}.items() if name in SIGNED else [("+", 1)]:
            ours = np.asarray(apply_operation(image, name, index, sign)).astype(int)
            assert abs(ours - published[f"{published_name(name)}/{index}/{mark}"]).max() <= 1


def test_the_operations_are_those_of_the_paper() -> None:
    published = {key.split("/")[0] for key in np.load(HERE / "operations.npz")} - {"input"}
    assert {published_name(name) for name in OPERATIONS} == published
    assert set(OPERATIONS) - set(AMOUNTS) == {"AutoContrast", "Equalize", "Invert"}


@pytest.mark.parametrize("policy", ["cifar10", "svhn", "imagenet"])
def test_sub_policies_are_the_published_ones(policy: str) -> None:
    with (HERE / "sub_policies.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["policy"] == policy]
    published = [
        tuple((row[f"operation{n}"], float(row[f"probability{n}"]), int(row[f"index{n}"])) for n in (1, 2))
        for row in rows
    ]
    ours = [tuple((published_name(name), *rest) for name, *rest in pair) for pair in POLICIES[policy]]  # type: ignore[index]
    assert ours == published
