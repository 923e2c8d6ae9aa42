"""The paper's tables: cost and accuracy of its networks (arXiv 2011.14660)."""

import csv
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files


@dataclass(frozen=True)
class PaperRow:
    """One row. Figures keep the digits that the paper prints, and are None if it prints none.

    Attributes:
        network: the undivided network's name.
        split: number of members S.
        num_classes: number of classes behind the paper's counts.
        image_size: image height and width in pixels behind the paper's counts.
        epochs: length of the training that reached `top1_error`.
        parameters: parameters of all members, in millions.
        multiply_adds: multiply-adds of all members for one image, in billions.
        top1_error: top-1 error of the ensemble, in percent.
        note: a remark on the row, or an empty string.
    """

    network: str
    split: int
    num_classes: int
    image_size: int
    epochs: int | None
    parameters: Decimal
    multiply_adds: Decimal | None
    top1_error: Decimal | None
    note: str


def paper_rows(table: str) -> list[PaperRow]:
    """Return the rows of a data set's table, in the paper's order; `counting.DATASETS` names the tables."""
    text = files("coserve_training").joinpath("paper_tables.csv").read_text("utf-8")
    return [
        PaperRow(
            network=row["network"],
            split=int(row["split"]),
            num_classes=int(row["num_classes"]),
            image_size=int(row["image_size"]),
            epochs=int(row["epochs"]) if row["epochs"] else None,
            parameters=Decimal(row["parameters"]),
            multiply_adds=_decimal(row["multiply_adds"]),
            top1_error=_decimal(row["top1_error"]),
            note=row["note"],
        )
        for row in csv.DictReader(text.splitlines())
        if row["table"] == table
    ]


def _decimal(text: str) -> Decimal | None:
    return Decimal(text) if text else None
