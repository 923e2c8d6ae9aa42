"""Options of `coserve export` for one kind of source, for int8, and for Triton."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from coserve_cli.checkpoint import Checkpoint as RunCheckpoint

FOR_INT8 = "Options for --precision int8"
FOR_RUNS = "Options for a run"
FOR_CHECKPOINTS = "Options for a checkpoint of the paper's authors"
FOR_FILES = "Options for ONNX files"
FOR_TRITON = "Options for Triton"
T = TypeVar("T")
INT32 = 2**31 - 1
"""The largest number in Triton's configuration."""


class NetworkPrecision(str, Enum):
    """Precision of weights and arithmetic."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class ResizeInterpolation(str, Enum):
    """Interpolation of resized images."""

    bilinear = "bilinear"
    bicubic = "bicubic"


class PublishedDataset(str, Enum):
    """Data sets of the paper's authors."""

    cifar10 = "cifar10"
    cifar100 = "cifar100"
    svhn = "svhn"
    imagenet = "imagenet"


def _list_of(kind: Callable[[str], T], example: str) -> Callable[[str], list[T]]:
    def parse(text: str) -> list[T]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a list of numbers like {example}") from None

    return parse


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a size like 224 or 224x320 (height x width)") from None


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
    return key, value


def _numbers(metavar: str, text: str, panel: str = FOR_FILES) -> Any:
    parser = _list_of(float, "0.49,0.48,0.44")
    return typer.Option(parser=parser, metavar=metavar, help=text, rich_help_panel=panel)


def _pairs(text: str) -> Any:
    return typer.Option(parser=_pair, metavar="KEY=VALUE", help=text, rich_help_panel=FOR_TRITON)


Precision = Annotated[
    NetworkPrecision | None,
    typer.Option(
        help="Precision of weights and arithmetic; ONNX files can only keep theirs or become int8.",
        show_default="fp32; that of ONNX files",
    ),
]
CalibrationData = Annotated[
    list[Path] | None,
    typer.Option(
        help="Images like those to be served, in any form that coserve train accepts; repeatable. Required.",
        rich_help_panel=FOR_INT8,
    ),
]
CalibrationImages = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of images to draw from --calibration-data.",
        show_default="512",
        rich_help_panel=FOR_INT8,
    ),
]
EvaluationData = Annotated[
    list[Path] | None,
    typer.Option(
        help="Images with a test split, to measure the loss of accuracy on, and the accuracy of a "
        "checkpoint in any precision; repeatable.",
        rich_help_panel=FOR_INT8,
    ),
]
MaxAccuracyLoss = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        metavar="POINTS",
        help="Top-1 accuracy that may be lost, in percentage points.",
        show_default="0.3",
        rich_help_panel=FOR_INT8,
    ),
]
Checkpoint = Annotated[
    RunCheckpoint | None,
    typer.Option(
        help="Export the last epoch, or the one with the highest accuracy on val/ (without one, on test/).",
        show_default="last",
        rich_help_panel=FOR_RUNS,
    ),
]
Network = Annotated[
    str | None,
    typer.Option(
        help="The authors' name of the network, such as wide_resnet28_10, if the file does not say it.",
        show_default=False,
        rich_help_panel=FOR_CHECKPOINTS,
    ),
]
Split = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of members; export fails if the file has another.",
        show_default=False,
        rich_help_panel=FOR_CHECKPOINTS,
    ),
]
Dataset = Annotated[
    PublishedDataset | None,
    typer.Option(
        help="Data set that the networks were trained on, if the file does not say it.",
        show_default=False,
        rich_help_panel=FOR_CHECKPOINTS,
    ),
]

Labels = Annotated[
    Path | None,
    typer.Option(
        help="Text file with one label per line, in the order of class indices. Required for ONNX files.",
        rich_help_panel=FOR_FILES,
    ),
]
Mean = Annotated[Any | None, _numbers("R,G,B", "Mean to subtract from pixel / 255. Required.")]
Std = Annotated[Any | None, _numbers("R,G,B", "Standard deviation to divide by. Required.")]
ResizeSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Shorter side of an image before the central crop, in pixels.",
        show_default="the input's longer side",
        rich_help_panel=FOR_FILES,
    ),
]
Stretch = Annotated[
    bool | None,
    typer.Option(
        "--stretch",
        help="Resize images to the input's size, without a crop.",
        rich_help_panel=FOR_FILES,
    ),
]
Interpolation = Annotated[
    ResizeInterpolation | None,
    typer.Option(help="Interpolation of resized images.", show_default="bilinear", rich_help_panel=FOR_FILES),
]
ImageSize = Annotated[
    Any | None,
    typer.Option(
        parser=_size,
        metavar="H[xW]",
        help="Input size, if the files leave it free or do not say it.",
        rich_help_panel=FOR_FILES,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(help="Name of the logits, if the files have several outputs.", rich_help_panel=FOR_FILES),
]
Weights = Annotated[Any | None, _numbers("W,W,…", "Weights of the members in the mean.")]
Samples = Annotated[
    Path | None,
    typer.Option(
        help="Folder of images to check the networks on.",
        show_default="random images",
        rich_help_panel=FOR_FILES,
    ),
]

Placement = Annotated[
    str | None,
    typer.Option(
        metavar="auto|cpu|GPU,…",
        help="Devices of the members, which take several GPUs in turn, with copies until all are used.",
        show_default="auto",
        rich_help_panel=FOR_TRITON,
    ),
]
Cores = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=INT32,
        help="Physical cores of Triton's machine: chooses --instances and --threads on its CPUs.",
        show_default=False,
        rich_help_panel=FOR_TRITON,
    ),
]
Instances = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=INT32,
        help="Copies of each member.",
        show_default="1; with --cores, as many as have four threads per member",
        rich_help_panel=FOR_TRITON,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=INT32,
        help="Threads of each instance on CPUs; 0 for one per core.",
        show_default="1; with --cores, an even share",
        rich_help_panel=FOR_TRITON,
    ),
]
PreferredBatchSizes = Annotated[
    Any | None,
    typer.Option(
        parser=_list_of(int, "4,8"),
        metavar="N,…",
        help="Batch sizes to run at once, without waiting for more requests.",
        rich_help_panel=FOR_TRITON,
    ),
]
QueueDelayUs = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=INT32,
        help="Microseconds that a request may wait for others to join its batch.",
        show_default="0",
        rich_help_panel=FOR_TRITON,
    ),
]
Parameters = Annotated[
    list[Any] | None,
    _pairs("Parameter of the ONNX Runtime backend, such as enable_mem_arena=0; repeatable."),
]
Cuda = Annotated[
    list[Any] | None,
    _pairs("Option of ONNX Runtime's CUDA provider, such as cudnn_conv_algo_search=HEURISTIC; repeatable."),
]
TensorRt = Annotated[
    list[Any] | None, _pairs("Use TensorRT, with an option such as precision_mode=FP16; repeatable.")
]
