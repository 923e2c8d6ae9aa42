"""Write checked ensembles of ONNX networks into a Triton model repository.

The names below are the public API (docs/guides/using/python-export.md has examples). They are imported when
they are first used, because torch and ONNX take seconds to import, and exporting ONNX files needs no torch.

trained.py        the networks of a training run: `export_run`
existing.py       existing ONNX files: `export_onnx`
authors/          checkpoints that the paper's authors publish: `export_published`
sources.py        what an export is given: a run, ONNX files or a checkpoint
int8.py           quantisation and what it costs: `Int8`
deployment.py     how Triton runs the members: `Deployment`, `Placement`
report.py         what was written: `Report`, `MemberReport`, `AccuracyLoss`
parity.py         comparing logits: `Parity`
ensemble.py       the ensemble's name, labels, preprocessing and weights
logits.py         the rule for what a network must give
compatibility.py  versions of ONNX, and the runtimes that load them
onnx_export.py    from torch to ONNX
onnx_file.py      reading and checking ONNX files
mean_graph.py     the ONNX graph that averages the members
session.py        running ONNX models
samples.py        images to try networks on
accuracy.py       measuring accuracy on labelled images
labelled.py       labelled images to calibrate and evaluate on
labels.py         reading label files
triton_config.py  Triton's config.pbtxt files
repository.py     writing a new ensemble
versions.py       adding a version to an ensemble
moves.py          renaming all files or none
errors.py         what can go wrong: `ExportError` and its subclasses
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# ONNX Runtime's official Linux builds have sent usage data since 1.29; it reads this variable on import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    "AccuracyError": "errors",
    "AccuracyLoss": "report",
    "Deployment": "deployment",
    "DescriptionError": "errors",
    "ExportError": "errors",
    "Int8": "int8",
    "MemberReport": "report",
    "NetworkError": "errors",
    "Parity": "parity",
    "ParityError": "errors",
    "Placement": "deployment",
    "Report": "report",
    "RepositoryError": "errors",
    "download_published": "authors.download",
    "export_onnx": "existing",
    "export_published": "authors.export",
    "export_run": "trained",
    "is_link": "authors.download",
    "looks_published": "authors.archive",
}

__all__ = list(_MODULES)

if TYPE_CHECKING:
    from coserve_export.authors.archive import looks_published as looks_published
    from coserve_export.authors.download import download_published as download_published
    from coserve_export.authors.download import is_link as is_link
    from coserve_export.authors.export import export_published as export_published
    from coserve_export.deployment import Deployment as Deployment
    from coserve_export.deployment import Placement as Placement
    from coserve_export.errors import AccuracyError as AccuracyError
    from coserve_export.errors import DescriptionError as DescriptionError
    from coserve_export.errors import ExportError as ExportError
    from coserve_export.errors import NetworkError as NetworkError
    from coserve_export.errors import ParityError as ParityError
    from coserve_export.errors import RepositoryError as RepositoryError
    from coserve_export.existing import export_onnx as export_onnx
    from coserve_export.int8 import Int8 as Int8
    from coserve_export.parity import Parity as Parity
    from coserve_export.report import AccuracyLoss as AccuracyLoss
    from coserve_export.report import MemberReport as MemberReport
    from coserve_export.report import Report as Report
    from coserve_export.trained import export_run as export_run
else:
    # Hidden from type checkers, so that they report unknown names.
    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
