"""The paper's tables: what its networks cost and reach (arXiv 2011.14660)."""

import csv
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files


@dataclass(frozen=True)
class PaperRow:
    """One row; figures keep the digits that the paper prints, and are None where it prints none.

    Attributes:
        network: the undivided network's name.
        split: number of members S.
        num_classes: that the paper's figures are counted with.
        image_size: height and width in pixels that they are counted at.
        epochs: of the training that reached `top1_error`.
        parameters: of all members, in millions.
        multiply_adds: of all members for one image, in billions.
        top1_error: of the ensemble, in percent.
        note: what a reader of the row should know, or nothing.
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
    """The rows of `table`, which is one of `divide.DATASETS`, in the paper's order."""
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
