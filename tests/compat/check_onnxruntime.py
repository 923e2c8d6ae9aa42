"""Check that this interpreter's ONNX Runtime loads a repository's networks and computes the recorded logits.

    python tests/compat/check_onnxruntime.py [REPOSITORY RECORD] [--record]

By default it checks the repository of this project. It needs onnxruntime and numpy alone, of any version:
`make_networks.py` exports and records with today's versions what old ones check.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

REPOSITORY = Path(__file__).parents[2] / "model_repository"
RECORD = Path(__file__).with_name("logits.json")
RELATIVE_LIMIT = 1e-3
"""Allowed fraction of a network's largest logit: versions differ in how they order and fuse sums."""
INT8_RELATIVE_LIMIT = 0.1
"""The same for networks in int8, where a rounding error may become a step of 1/255."""


def run(path: Path) -> np.ndarray:
    """Run a network on inputs that every version of numpy computes alike; return its only output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {}
    for index, tensor in enumerate(session.get_inputs()):
        shape = [size if isinstance(size, int) else 2 for size in tensor.shape]
        count = int(np.prod(shape))
        inputs[tensor.name] = np.sin(np.arange(count, dtype=np.float64) * (0.37 + index)).reshape(shape)
    return session.run(None, {name: values.astype(np.float32) for name, values in inputs.items()})[0]


def compare(repository: Path, recorded: dict[str, list[list[float]]]) -> list[str]:
    """Return the faults, a line per network."""
    networks = find_networks(repository)
    wrong = [f"{name}: recorded, but not in {repository}" for name in sorted(set(recorded) - set(networks))]
    wrong += [f"{name}: not recorded" for name in sorted(set(networks) - set(recorded))]
    for name in sorted(set(networks) & set(recorded)):
        expected = np.asarray(recorded[name], np.float32)
        try:
            logits = run(networks[name])
        # ONNX Runtime's errors share no base class but Exception.
        except Exception as error:
            wrong.append(f"{name}: {' '.join(str(error).split())}")
            continue
        limit = (INT8_RELATIVE_LIMIT if "int8" in name else RELATIVE_LIMIT) * float(np.abs(expected).max())
        if logits.shape != expected.shape or not np.abs(logits - expected).max() <= limit:
            wrong.append(f"{name}: other logits than those recorded")
    return wrong


def find_networks(repository: Path) -> dict[str, Path]:
    """Return the ONNX files of a model repository, by relative path."""
    return {path.relative_to(repository).as_posix(): path for path in sorted(repository.glob("*/*/*.onnx"))}


def record(repository: Path, file: Path) -> None:
    """Record the logits of this interpreter's ONNX Runtime."""
    logits = {name: run(path).tolist() for name, path in find_networks(repository).items()}
    rounded = {name: [[round(value, 5) for value in row] for row in rows] for name, rows in logits.items()}
    file.write_text(json.dumps(rounded, indent=0) + "\n", "utf-8")


def main() -> int:
    """Check, or record; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", nargs="?", type=Path, default=REPOSITORY)
    parser.add_argument("logits", nargs="?", type=Path, default=RECORD)
    parser.add_argument("--record", action="store_true", help="write the file of logits instead of checking")
    options = parser.parse_args()
    if options.record:
        record(options.repository, options.logits)
        return 0
    recorded = json.loads(options.logits.read_text("utf-8"))
    wrong = compare(options.repository, recorded)
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"ONNX Runtime {onnxruntime.__version__}: {len(recorded)} networks, {len(wrong)} wrong")
    return 1 if wrong or not recorded else 0


if __name__ == "__main__":
    sys.exit(main())
