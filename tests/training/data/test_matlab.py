"""MATLAB files that scipy has written (matlab/write.py), and damaged ones."""

from pathlib import Path

import numpy as np
import pytest

from coserve_training.data.files import StoredFile
from coserve_training.data.matlab import read_matlab
from coserve_training.errors import DataError

FOLDER = Path(__file__).parent / "matlab"


def read(name: str, *variables: str) -> dict[str, object]:
    return read_matlab(StoredFile(str(FOLDER / name)), *variables)


@pytest.mark.parametrize("name", ["kinds.mat", "kinds_compressed.mat"])
def test_numbers_text_and_structures_are_read(name: str) -> None:
    numbers = ("int8", "uint16", "int32", "int64", "float32", "float64")
    found = read(name, *numbers, "cube", "scalar", "empty", "text", "structure")
    for kind in numbers:
        array = found[kind]
        assert isinstance(array, np.ndarray)
        assert array.dtype == kind
        assert array.tolist() == (np.arange(6).reshape(2, 3) + (0.5 if "float" in kind else 0)).tolist()
    cube = found["cube"]
    assert isinstance(cube, np.ndarray)
    assert (cube == np.arange(24).reshape(2, 3, 4)).all()
    assert np.shape(found["scalar"]) == (1, 1)
    assert found["scalar"] == 7
    assert np.shape(found["empty"]) == (0, 0)
    assert found["text"] == "häuser"
    structure = found["structure"]
    assert isinstance(structure, dict)
    assert list(structure) == ["number", "inner", "nothing"]
    assert structure["number"] == [1]
    assert structure["inner"] == [{"text": ["abc"]}]


def test_fields_of_a_structure_array_are_lists() -> None:
    synsets = read("meta.mat", "synsets")["synsets"]
    assert isinstance(synsets, dict)
    assert [int(number.item()) for number in synsets["ILSVRC2012_ID"]] == [2, 1, 3, 1001]
    assert synsets["WNID"] == ["n01440764", "n02119789", "n03995372", "n00001740"]
    assert [np.size(children) for children in synsets["children"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("variable", ["cell", "sparse", "absent"])
def test_other_kinds_are_like_absent_variables(variable: str) -> None:
    with pytest.raises(DataError, match=f"has no variable {variable}$"):
        read("kinds.mat", "text", variable)


def test_big_endian_numbers(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return np.array([kind, len(data)], ">u4").tobytes() + data + bytes(-len(data) % 8)

    matrix = (
        element(6, np.array([12, 0], ">u4").tobytes())
        + element(5, np.array([1, 3], ">i4").tobytes())
        + element(1, b"x")
        + element(3, np.array([1, 2, -3], ">i2").tobytes())
    )
    file = tmp_path / "big.mat"
    file.write_bytes(b"MATLAB 5.0".ljust(124) + b"\1\0MI" + element(14, matrix))
    x = read_matlab(StoredFile(str(file)), "x")["x"]
    assert x.dtype == np.int32
    assert x.tolist() == [[1, 2, -3]]


def test_files_of_version_7_3_are_named(tmp_path: Path) -> None:
    file = tmp_path / "new.mat"
    file.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512))
    with pytest.raises(DataError, match=r"MATLAB 7\.3.*save it with -v7\)$"):
        read_matlab(StoredFile(str(file)), "x")


@pytest.mark.parametrize("name", ["kinds.mat", "kinds_compressed.mat", "meta.mat"])
def test_damage_is_one_line(name: str, tmp_path: Path) -> None:
    whole = (FOLDER / name).read_bytes()
    random = np.random.default_rng(0)
    file = tmp_path / "damaged.mat"
    complaints = []
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(124, len(whole), 3):
            damaged[place] = random.choice([0, 1, 2, 14, 127, 255])
        file.write_bytes(damaged[: random.integers(len(whole) // 2, len(whole) + 1)])
        try:
            read_matlab(StoredFile(str(file)))
        except DataError as error:
            complaints.append(str(error))
    assert len(complaints) > 100
    for complaint in complaints:
        assert complaint.startswith(f"{file}: not a MATLAB file, or damaged (")
        assert "\n" not in complaint
