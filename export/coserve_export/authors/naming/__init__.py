"""The authors' names of the layers, one file per family.

Each function yields the authors' name of a layer, without `models.<member>.`, and our layer of the same
weights.
"""

from collections.abc import Iterable, Iterator

from torch import nn

Names = Iterator[tuple[str, nn.Module]]


def numbered(blocks: Iterable[nn.Module], starts: Iterable[bool]) -> Iterator[tuple[int, int, nn.Module]]:
    """Yield each block's stage, from 1, and its number in the stage, from 0.

    Args:
        blocks: all blocks, in order.
        starts: for each block, whether a stage after the first one starts with it.
    """
    stage = 1
    number = 0
    for block, starts_stage in zip(blocks, starts, strict=True):
        if starts_stage:
            stage += 1
            number = 0
        yield stage, number, block
        number += 1
