"""Networks with random weights, which cost as much to run as trained ones."""

import torch
from torch import nn

SAMPLES = 8


def randomise(network: nn.Module, image_size: int) -> nn.Module:
    """Set the batch norms of an untrained network as training might leave them.

    Scales are drawn around 1, so that no branch vanishes. Means and variances are those of the activations of
    normally distributed images, so that activations stay finite in a network of any depth.

    Returns:
        the network, in evaluation mode.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.reset_running_stats()
            # Average over all batches, with equal weights.
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(SAMPLES, 3, image_size, image_size))
    return network.eval()
