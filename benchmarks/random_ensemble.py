"""Write an ensemble with random weights to a model repository; it costs as much to serve as a trained one.

    python benchmarks/random_ensemble.py wide_resnet16_8 --split 2 --repository random

Measure it in other benchmarks with `--repository random --model wide_resnet16_8_s2_fp32`.
"""

import argparse
from pathlib import Path

from coserve_bench.speedup.random_weights import export_family
from coserve_training.counting import DATASETS


def main() -> None:
    """Export the ensemble."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network")
    parser.add_argument("--split", type=int, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--dataset", choices=list(DATASETS), default="cifar10")
    parser.add_argument("--max-batch-size", type=int, default=64)
    arguments = parser.parse_args()
    export_family(
        arguments.repository,
        arguments.network,
        [arguments.split],
        ["fp32"],
        arguments.dataset,
        arguments.max_batch_size,
        progress=None,
    )


if __name__ == "__main__":
    main()
