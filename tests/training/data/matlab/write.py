"""Write the files of this folder, with scipy in a virtual environment of its own: `python write.py`."""

from pathlib import Path

import numpy as np
from scipy.io import savemat
from scipy.sparse import csr_matrix

HERE = Path(__file__).parent


def images(count: int) -> np.ndarray:
    """Make images `[32, 32, 3, N]` that compress well."""
    height, width, channel, image = np.ogrid[:32, :32, :3, :count]
    return (height + 2 * width + 50 * channel + 3 * image).astype(np.uint8)


def labels(count: int) -> np.ndarray:
    """Make labels `[N, 1]` from 1 to 10, which stands for 0."""
    return (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]


if __name__ == "__main__":
    for name, count in (("train", 30), ("test", 20), ("extra", 50)):
        content = {"X": images(count), "y": labels(count)}
        savemat(HERE / f"{name}_32x32.mat", content, do_compression=True)
    four = np.zeros((32, 32, 3, 4), np.uint8)
    savemat(HERE / "no_labels.mat", {"X": four})
    savemat(HERE / "five_labels.mat", {"X": four, "y": np.ones((5, 1))})
    savemat(HERE / "label_zero.mat", {"X": four, "y": np.zeros((4, 1))})
    savemat(HERE / "text.mat", {"X": "images", "y": "labels"})
    synsets = np.zeros((4, 1), [("ILSVRC2012_ID", object), ("WNID", object), ("children", object)])
    rows = ((2, "n01440764"), (1, "n02119789"), (3, "n03995372"), (1001, "n00001740"))
    for index, (number, wnid) in enumerate(rows):
        synsets[index, 0] = (np.array([[number]], np.uint16), wnid, np.arange(index, dtype=float))
    savemat(HERE / "meta.mat", {"synsets": synsets}, do_compression=True)
    kinds = {
        **{name: np.arange(6).reshape(2, 3).astype(name) for name in ("int8", "uint16", "int32", "int64")},
        **{name: np.arange(6).reshape(2, 3).astype(name) + 0.5 for name in ("float32", "float64")},
        "cube": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "scalar": 7.0,
        "empty": np.zeros((0, 0)),
        "text": "häuser",
        "structure": {"number": 1.0, "inner": {"text": "abc"}, "nothing": np.zeros((0, 0))},
        "cell": np.array([1, "x"], object),
        "sparse": csr_matrix(np.eye(3)),
    }
    savemat(HERE / "kinds.mat", kinds)
    savemat(HERE / "kinds_compressed.mat", kinds, do_compression=True)
