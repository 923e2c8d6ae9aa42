"""Train with one process per member, and copy the run folder after the first epoch.

    python placed_run.py FOLDER COPY CONFIG

This is a script because Lightning starts the program again for every further process.
"""

import json
import shutil
import sys
from pathlib import Path

from coserve_training.config import TrainConfig
from coserve_training.training_run import train

if __name__ == "__main__":
    folder, copy = map(Path, sys.argv[1:3])
    config = TrainConfig.from_json(json.loads(sys.argv[3]))

    def copy_once(line: str) -> None:
        if not copy.exists():
            shutil.copytree(folder, copy)

    train(config, folder, devices=config.split, place_members=True, report=copy_once)
