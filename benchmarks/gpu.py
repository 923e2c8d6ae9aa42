"""Measure members on one GPU: with PyTorch alone first, then with Coserve's engine.

    python benchmarks/gpu.py --output FOLDER

Stages follow each other in the order of their worth, each in a process of its own
that is ended at its deadline. Every row is written when it is measured, so a run
that is cut off leaves what it had: FOLDER/gpu.json has all stages that ended, and
FOLDER/STAGE.jsonl the rows of one.

  machine      the GPU, its peak, and what a launch costs
  speed        networks divided into S, in fp32: in turn and at once, kernel by
               kernel and as CUDA graphs
  kernels      how far the members' kernels overlap, from a profile
  onnxruntime  coserve bench speedup --gpus 0 --cuda-graphs
  tests        the tests of members on GPUs
  precisions   as speed, in fp16 and tf32
  steps        the throughput of co-training
  training     coserve train on --data, for as many epochs as there is time

PyTorch is the only requirement. The stages onnxruntime and tests need an ONNX
Runtime with CUDA (pip install 'coserve[gpu,export]' pytest), and training needs
'coserve[train]'; without, they say so. With --device cpu a small network tries
all stages.
"""

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gpu_stages

ROOT = Path(__file__).resolve().parents[1]
COMPONENTS = ("images", "training", "export", "server", "client", "bench", "cli", "local_triton")
LEAST_S = 5
"""A stage with less time is left out."""
STAGES = {
    "machine": 30,
    "speed": 170,
    "kernels": 60,
    "onnxruntime": 150,
    "tests": 60,
    "precisions": 120,
    "steps": 40,
    "training": 600,
}
"""The most seconds for each stage, in the order in which they run."""


def main() -> None:
    """Run the stages in turn, or, as a stage's own process, that stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", choices=sorted(gpu_stages.PLANS), default="cuda")
    parser.add_argument("--minutes", type=float, default=9, help="most time for all stages (9)")
    parser.add_argument("--data", help="images to train on, in any form that coserve train takes")
    parser.add_argument("--only", default=",".join(STAGES), help="stages to run, separated by commas")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not 0 < arguments.minutes < math.inf:
        parser.error("--minutes: a positive number is needed")
    if unknown := set(arguments.only.split(",")) - set(STAGES):
        parser.error(f"--only: no stage {', '.join(sorted(unknown))}; stages are {', '.join(STAGES)}")
    paths = [str(ROOT / component) for component in COMPONENTS]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, str(ROOT), os.environ.get("PYTHONPATH", "")])
    sys.path[:0] = [*paths, str(ROOT)]
    if arguments.stage is None:
        # Stages run in the root of the sources.
        arguments.output = arguments.output.absolute()
        if arguments.data and Path(arguments.data).exists():
            arguments.data = str(Path(arguments.data).absolute())
        if reason := gpu_stages.why_unusable(arguments.device):
            sys.exit(f"error: {reason}")
        if arguments.device == "cpu":
            # PyTorch's threads spin while they wait, which on busy cores takes most of the time.
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        # Stages are process groups of their own, which would outlive this process.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            outcomes = run_stages(arguments)
        except OSError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            print(f"interrupted; {arguments.output} has what was measured", file=sys.stderr)
            sys.exit(130)
        sys.exit(any(outcome.startswith("failed") for outcome in outcomes))
    deadline = time.monotonic() + arguments.seconds
    stage = getattr(gpu_stages, f"run_{arguments.stage}")
    for row in stage(gpu_stages.PLANS[arguments.device], arguments, deadline):
        print(json.dumps(row), flush=True)


def run_stages(arguments: argparse.Namespace) -> list[str]:
    """Run each stage in a process of its own, write all results after each, and return their outcomes."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.minutes * 60
    results: dict[str, Any] = {"device": arguments.device, "python": platform.python_version(), "stages": {}}
    for stage, most in STAGES.items():
        if stage not in arguments.only.split(","):
            continue
        left = end - time.monotonic()
        if left < LEAST_S:
            results["stages"][stage] = {"outcome": "no time left"}
        else:
            results["stages"][stage] = run_stage(stage, min(most, left), arguments)
        rows = [row for name in ("speed", "precisions") for row in rows_of(results, name)]
        if rows:
            from coserve_bench.gpu.speed import summarise

            results["summary"] = summarise(rows)
        written = arguments.output / "gpu.json.partial"
        written.write_text(json.dumps(results, indent=1), "utf-8")
        written.replace(arguments.output / "gpu.json")
        outcome = results["stages"][stage]
        print(f"{stage}: {outcome['outcome']}, {outcome.get('seconds', 0)} s", flush=True)
    for line in results.get("summary", []):
        print(json.dumps(line))
    return [stage["outcome"] for stage in results["stages"].values()]


def run_stage(stage: str, seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a stage, end it and all that it started at its deadline, and return its outcome and rows."""
    command = [sys.executable, __file__, "--stage", stage, "--seconds", str(seconds - 2)]
    command += ["--output", str(arguments.output), "--device", arguments.device]
    if arguments.data:
        command += ["--data", arguments.data]
    rows = arguments.output / f"{stage}.jsonl"
    log = arguments.output / f"{stage}.log"
    start = time.monotonic()
    with rows.open("wb") as out, log.open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, start_new_session=True)
        try:
            status = process.wait(seconds)
            outcome = "done" if status == 0 else f"failed: {last_line(log)}"
        except subprocess.TimeoutExpired:
            outcome = gpu_stages.CUT_OFF
        finally:
            end_group(process)
    kept = [row for line in rows.read_text("utf-8").splitlines() if (row := parse(line)) is not None]
    if outcome == "done" and (statuses := {row["status"] for row in kept if row.get("status")}):
        late = statuses == {gpu_stages.CUT_OFF}
        outcome = gpu_stages.CUT_OFF if late else "failed: a command that it ran; see its rows"
    return {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), "rows": kept}


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a stage's process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def parse(line: str) -> dict[str, Any] | None:
    """Return a row; None if its line was cut off."""
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return row


def rows_of(results: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    """Return a stage's rows; none if it has not run."""
    rows: list[dict[str, Any]] = results["stages"].get(stage, {}).get("rows", [])
    return rows


def last_line(log: Path) -> str:
    """Return the last line of a log, which names the error of a traceback."""
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"


if __name__ == "__main__":
    main()
