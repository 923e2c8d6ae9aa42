"""PyramidNet and Shake-Shake."""

from typing import cast

from torch import nn

from coserve_export.authors.naming import Names, numbered
from coserve_training.networks.pyramidnet import PyramidBottleneck
from coserve_training.networks.shake_shake import ShakeShakeBlock, ShiftedShortcut


def pyramidnet_names(network: nn.Sequential) -> Names:
    """Name the layers of a PyramidNet."""
    conv, norm, *blocks, final, _, classifier = network
    yield "conv1", conv
    yield "bn1", norm
    starts = [not isinstance(block.pool, nn.Identity) for block in blocks]
    for stage, number, block in numbered(blocks, starts):
        bottleneck = cast(PyramidBottleneck, block)
        prefix = f"layer{stage}.{number}"
        yield f"{prefix}.bn1", bottleneck.norm0
        for position in (1, 2, 3):
            yield f"{prefix}.conv{position}", getattr(bottleneck, f"conv{position}")
            yield f"{prefix}.bn{position + 1}", getattr(bottleneck, f"norm{position}")
    yield "bn_final", final
    yield "fc", cast(nn.Sequential, classifier)[-1]


def shake_shake_names(network: nn.Sequential) -> Names:
    """Name the layers of a Shake-Shake network. The authors' first convolution has a bias, too."""
    conv, norm, *blocks, _, classifier = network
    yield "conv_1", conv
    yield "bn_1", norm
    # The first stage keeps the resolution, but its first block changes the width as well.
    starts = [index > 0 and isinstance(block.shortcut, ShiftedShortcut) for index, block in enumerate(blocks)]
    for stage, number, block in numbered(blocks, starts):
        shaken = cast(ShakeShakeBlock, block)
        prefix = f"stage_{stage}.{number}"
        for branch, layers in enumerate(shaken.branches, start=1):
            for index, layer in enumerate(cast(nn.Sequential, layers)):
                yield f"{prefix}.branch{branch}.{index}", layer
        if isinstance(shaken.shortcut, ShiftedShortcut):
            yield f"{prefix}.shortcut.conv1", shaken.shortcut.straight
            yield f"{prefix}.shortcut.conv2", shaken.shortcut.shifted
            yield f"{prefix}.shortcut.bn", shaken.shortcut.norm
    yield "fc_out", cast(nn.Sequential, classifier)[-1]
