"""The model repository of the soak test: its files change, and with them the correct logits."""

import io
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from coserve_images.decode import open_image
from coserve_images.preprocess import Preprocessing, preprocess, shorter_side
from coserve_server.ensembles.repository import read_repository

Floats = NDArray[np.float32]
MAX_PIXELS = 10**7


class Generation(NamedTuple):
    """A state of an ensemble's files.

    Attributes:
        version: the ensemble's version.
        networks: indices of its members' networks.
        logits: logits of all images, `[images, classes]`.
    """

    version: str
    networks: frozenset[int]
    logits: Floats


def photographs(count: int) -> list[bytes]:
    """Return image files of blurred colours: small ones, and a few of two megapixels."""
    noise = np.random.default_rng(0)
    files = []
    for index in range(count):
        size = (1600, 1200) if index % 8 == 7 else (32 + 8 * index, 48)
        file = io.BytesIO()
        blobs = noise.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(blobs).resize(size).save(file, ("PNG", "JPEG", "WEBP", "JPEG")[index % 4])
        files.append(file.getvalue())
    return files


def prepare(file: bytes, how: Preprocessing) -> Floats:
    """Return an image's tensor `[3, H, W]` as a server does, which decodes large JPEGs smaller."""
    with open_image(file, MAX_PIXELS) as opened:
        image, box = opened.decode(shorter_side(how))
    return preprocess(image, how, MAX_PIXELS, box)


class Models:
    """The copy of the repository, with the generations of each ensemble that may answer now."""

    def __init__(self, folder: Path, images: Sequence[bytes]) -> None:
        self.folder = folder
        ensembles = read_repository(folder)
        (preprocessing,) = {ensemble.preprocessing for ensemble in ensembles.values()}
        self.tensors = np.stack([prepare(image, preprocessing) for image in images])
        paths = {m.name: m.model_path for ensemble in ensembles.values() for m in ensemble.members}
        self.networks = [path.read_bytes() for path in paths.values() if path]
        self.logits = [self._run(network) for network in self.networks]
        numbers = {name: number for number, name in enumerate(paths)}
        self.members = {name: [m.name for m in one.members] for name, one in ensembles.items()}
        self.allowed: dict[str, tuple[Generation, ...]] = {
            name: (self._generation(one.version, [numbers[member] for member in self.members[name]]),)
            for name, one in ensembles.items()
        }

    def _run(self, network: bytes) -> Floats:
        (logits,) = ort.InferenceSession(network, providers=["CPUExecutionProvider"]).run(
            None, {"images": self.tensors}
        )
        return np.asarray(logits)

    def _generation(self, version: str, chosen: list[int]) -> Generation:
        mean = np.mean([self.logits[number] for number in chosen], axis=0)
        return Generation(version, frozenset(chosen), mean)

    def change(self, name: str, in_place: bool) -> Generation:
        """Give an ensemble other networks, as a new version or in place of its newest.

        Raises:
            ValueError: the repository has no other networks.
        """
        (now,) = self.allowed[name]
        members = self.members[name]
        if len(members) == len(self.networks):
            raise ValueError(f"{name} has all networks of the repository already")
        version = now.version if in_place else str(int(now.version) + 1)
        chosen = random.sample(range(len(self.networks)), len(members))
        while frozenset(chosen) == now.networks:
            chosen = random.sample(range(len(self.networks)), len(members))
        new = self._generation(version, chosen)
        self.allowed[name] = (now, new)
        built = self.folder / ".built"
        for member, number in zip(members, chosen, strict=True):
            built.write_bytes(self.networks[number])
            (self.folder / member / version).mkdir(exist_ok=True)
            built.rename(self.folder / member / version / "model.onnx")
        if not in_place:
            (self.folder / name / version).mkdir()
            config = self.folder / name / "config.pbtxt"
            step = r'(model_name: "(?:' + "|".join(members) + r')"\s+model_version: )\d+'
            built.write_text(re.sub(step, rf"\g<1>{version}", config.read_text()))
            built.rename(config)
        return new

    def settle(self, name: str) -> None:
        """Allow only the newest generation from now on, and delete the files of older versions."""
        *before, newest = self.allowed[name]
        self.allowed[name] = (newest,)
        for old in {one.version for one in before} - {newest.version}:
            for model in (name, *self.members[name]):
                shutil.rmtree(self.folder / model / old)
