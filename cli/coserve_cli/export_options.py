"""The options of `coserve export` that hold for one kind of source, or say how Triton runs the members."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from coserve_cli.checkpoint import Checkpoint as RunCheckpoint

FOR_INT8 = "For --precision int8"
FOR_RUNS, FOR_FILES, FOR_TRITON = "For a run", "For ONNX files", "How Triton runs the members"
T = TypeVar("T")
INT32 = 2**31 - 1
"""The largest number that fits where Triton keeps them."""


class NetworkPrecision(str, Enum):
    """Of weights and arithmetic."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class ResizeInterpolation(str, Enum):
    """How images are resized."""

    bilinear = "bilinear"
    bicubic = "bicubic"


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
        raise typer.BadParameter(f"{text!r} is not a size like 224, or 224x320 (height x width)") from None


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
    typer.Option(help="Of weights and arithmetic; fp32 by default, and of ONNX files as they are, or int8."),
]
CalibrationData = Annotated[
    list[Path] | None,
    typer.Option(
        help="Images like those to be served, in any form coserve train takes. Needed.",
        rich_help_panel=FOR_INT8,
    ),
]
CalibrationImages = Annotated[
    int | None, typer.Option(min=1, help="Drawn from those; 512 by default.", rich_help_panel=FOR_INT8)
]
EvaluationData = Annotated[
    list[Path] | None,
    typer.Option(
        help="Images with a test split, to measure what accuracy is lost.", rich_help_panel=FOR_INT8
    ),
]
MaxAccuracyLoss = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        metavar="POINTS",
        help="Of top-1 accuracy, in percentage points; 0.3 by default.",
        rich_help_panel=FOR_INT8,
    ),
]
Checkpoint = Annotated[RunCheckpoint | None, typer.Option(help="last by default.", rich_help_panel=FOR_RUNS)]

Labels = Annotated[
    Path | None, typer.Option(help="One label per line, by class index. Needed.", rich_help_panel=FOR_FILES)
]
Mean = Annotated[Any | None, _numbers("R,G,B", "Subtracted from pixel / 255. Needed.")]
Std = Annotated[Any | None, _numbers("R,G,B", "Divided by. Needed.")]
ResizeSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The shorter side before the central crop; by default the input's longer side.",
        rich_help_panel=FOR_FILES,
    ),
]
Stretch = Annotated[
    bool | None,
    typer.Option(
        "--stretch", help="Resize to the input's size exactly, without crop.", rich_help_panel=FOR_FILES
    ),
]
Interpolation = Annotated[
    ResizeInterpolation | None, typer.Option(help="bilinear by default.", rich_help_panel=FOR_FILES)
]
ImageSize = Annotated[
    Any | None,
    typer.Option(
        parser=_size,
        metavar="H[xW]",
        help="Where the files leave the size free.",
        rich_help_panel=FOR_FILES,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(help="The logits' name, where the files have several outputs.", rich_help_panel=FOR_FILES),
]
Weights = Annotated[Any | None, _numbers("W,W,…", "Of the members in the mean.")]
Samples = Annotated[
    Path | None,
    typer.Option(
        help="A folder of images to try the networks on; random ones by default.", rich_help_panel=FOR_FILES
    ),
]

Placement = Annotated[
    str | None,
    typer.Option(
        metavar="auto|cpu|GPU,…",
        help="auto by default; of GPUs 0,1 the members take turns: 0, 1, 0, …",
        rich_help_panel=FOR_TRITON,
    ),
]
Instances = Annotated[
    int | None,
    typer.Option(min=1, max=INT32, help="Copies of each member; 1 by default.", rich_help_panel=FOR_TRITON),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=INT32,
        help="Of each instance on a CPU; 1 by default, 0 for one per core.",
        rich_help_panel=FOR_TRITON,
    ),
]
PreferredBatchSizes = Annotated[
    Any | None,
    typer.Option(
        parser=_list_of(int, "4,8"),
        metavar="N,…",
        help="Sizes at which a batch waits no longer.",
        rich_help_panel=FOR_TRITON,
    ),
]
QueueDelayUs = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=INT32,
        help="Microseconds a request may wait for others; 0 by default.",
        rich_help_panel=FOR_TRITON,
    ),
]
Parameters = Annotated[
    list[Any] | None, _pairs("Of the ONNX Runtime backend, such as enable_mem_arena=0; repeatable.")
]
Cuda = Annotated[
    list[Any] | None,
    _pairs("Of ONNX Runtime's CUDA provider, such as cudnn_conv_algo_search=HEURISTIC; repeatable."),
]
TensorRt = Annotated[
    list[Any] | None, _pairs("Use TensorRT, with options such as precision_mode=FP16; repeatable.")
]
