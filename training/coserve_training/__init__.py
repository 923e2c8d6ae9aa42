"""Divide image classifiers into ensembles and train their members together (arXiv 2011.14660).

The names below are the public API (docs/guides/using/python-training.md has examples). They are imported when
they are first used, because torch and Lightning take seconds to import.

networks/        architectures by name, and the rules that divide them: `member_network`
counting.py      parameters and multiply-adds: `cost`
paper.py         the paper's tables
config.py        a training run's options: `TrainConfig`
options.py       types and headings of options, and checks of their values
recipes.py       options by recipe, from recipes/*.toml
data/            labelled images: reading, decoding, batches and their order
views/           augmentation: what each member sees of an image
loss.py          the co-training loss
optimise.py      optimizers and learning-rate schedules
rmsprop.py       RMSprop by TensorFlow's rules
module.py        the training step, as a Lightning module
trainer.py       Lightning's trainer: checkpoints, precision, devices
callbacks.py     averaged weights and the history
device.py        the device to compute on
memory.py        memory that stays in the process: `keep_memory`
distributed/     batch norm across processes, and one member per process
runs/            run folders: writing, loading (`load_run`), evaluating (`evaluate_run`) and
                 calibrating (`calibrate_run`) them
doubt/           what an ensemble knows about its own doubt: `assess_run`, `measure_doubt`, `corrupt`
training_run.py  a whole run, from data set to run folder: `train`
errors.py        what can go wrong: `TrainingError` and its subclasses
"""

from importlib import import_module
from typing import TYPE_CHECKING

_MODULES = {
    "Assessment": "doubt.assess",
    "Calibration": "runs.calibrate",
    "Cost": "counting",
    "DividedCost": "counting",
    "EarlyStopping": "runs.early_stopping",
    "Evaluation": "runs.evaluate",
    "NetworkConfig": "networks.config",
    "PredictionSets": "runs.prediction_sets",
    "Run": "runs.folder",
    "Scores": "runs.evaluate",
    "SelectiveAccuracy": "doubt.selective",
    "Separation": "doubt.detection",
    "Subset": "runs.calibrate",
    "TrainConfig": "config",
    "TrainingError": "errors",
    "assess_run": "doubt.assess",
    "calibrate_run": "runs.calibrate",
    "corrupt": "doubt.corruptions",
    "cost": "counting",
    "evaluate_run": "runs.evaluate",
    "keep_memory": "memory",
    "load_run": "runs.folder",
    "measure_doubt": "doubt.measures",
    "member_network": "networks",
    "selective_accuracy": "doubt.selective",
    "separate": "doubt.detection",
    "train": "training_run",
}

__all__ = list(_MODULES)

if TYPE_CHECKING:
    from coserve_training.config import TrainConfig as TrainConfig
    from coserve_training.counting import Cost as Cost
    from coserve_training.counting import DividedCost as DividedCost
    from coserve_training.counting import cost as cost
    from coserve_training.doubt.assess import Assessment as Assessment
    from coserve_training.doubt.assess import assess_run as assess_run
    from coserve_training.doubt.corruptions import corrupt as corrupt
    from coserve_training.doubt.detection import Separation as Separation
    from coserve_training.doubt.detection import separate as separate
    from coserve_training.doubt.measures import measure_doubt as measure_doubt
    from coserve_training.doubt.selective import SelectiveAccuracy as SelectiveAccuracy
    from coserve_training.doubt.selective import selective_accuracy as selective_accuracy
    from coserve_training.errors import TrainingError as TrainingError
    from coserve_training.memory import keep_memory as keep_memory
    from coserve_training.networks import member_network as member_network
    from coserve_training.networks.config import NetworkConfig as NetworkConfig
    from coserve_training.runs.calibrate import Calibration as Calibration
    from coserve_training.runs.calibrate import Subset as Subset
    from coserve_training.runs.calibrate import calibrate_run as calibrate_run
    from coserve_training.runs.early_stopping import EarlyStopping as EarlyStopping
    from coserve_training.runs.evaluate import Evaluation as Evaluation
    from coserve_training.runs.evaluate import Scores as Scores
    from coserve_training.runs.evaluate import evaluate_run as evaluate_run
    from coserve_training.runs.folder import Run as Run
    from coserve_training.runs.folder import load_run as load_run
    from coserve_training.runs.prediction_sets import PredictionSets as PredictionSets
    from coserve_training.training_run import train as train
else:
    # Hidden from type checkers, so that they report unknown names.
    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
