import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_export import DescriptionError, ExportError, NetworkError, ParityError, export_onnx
from coserve_export.labels import read_labels
from coserve_export.onnx_file import read_onnx

MakeOnnx = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path, labels_file: Path) -> Callable[..., ModelConfig]:
    """Return a function that exports to a new repository and reads the ensemble's configuration."""

    def run(*files: Path, **options: object) -> ModelConfig:
        repository = tmp_path / "repository"
        values = {"name": "own", "mean": [0.5] * 3, "std": [0.25] * 3} | options
        try:
            export_onnx(files, repository, labels=labels_file, **values)
        except ExportError:
            assert not repository.exists()
            raise
        return text_format.Parse(
            (repository / values["name"] / "config.pbtxt").read_text("utf-8"), ModelConfig()
        )

    return run


def test_files_stay_as_they_are_and_tensor_names_are_mapped(
    make_onnx: MakeOnnx, export: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    files = [make_onnx("a.onnx"), make_onnx("b.onnx", seed=1)]
    config = export(*files, weights=[1.0, 2.0])
    for index, file in enumerate(files):
        assert (tmp_path / f"repository/own_member{index}/1/model.onnx").read_bytes() == file.read_bytes()
    step = config.ensemble_scheduling.step[1]
    assert dict(step.input_map) == {"pixels": "images"}
    assert list(step.output_map) == ["scores"]
    values = {key: json.loads(value.string_value) for key, value in config.parameters.items()}
    assert values["weights"] == [1, 2]
    assert values["preprocessing"]["resize_size"] == 8
    assert values["provenance"]["member_networks"] == ["a", "b"]
    assert values["provenance"]["export"] == {"images": 8, "opset": 17}


def test_external_weights_become_part_of_the_file(
    make_onnx: MakeOnnx, export: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    model = onnx.load(make_onnx())
    weights = model.graph.initializer[0].raw_data
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    export(tmp_path / "split.onnx")
    for content in (b"too short", None):
        (tmp_path / "w.bin").unlink()
        if content is not None:
            (tmp_path / "w.bin").write_bytes(content)
        with pytest.raises(NetworkError, match=r"split.onnx: is not a valid ONNX model: .*'?weights'?"):
            read_onnx(tmp_path / "split.onnx")
    written = onnx.load(tmp_path / "repository/own_member0/1/model.onnx")
    assert written.graph.initializer[0].raw_data == weights


def test_external_weights_behind_a_link(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """As in Hugging Face's cache, whose files are links."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    onnx.save(
        onnx.load(make_onnx()),
        blobs / "a.onnx",
        save_as_external_data=True,
        size_threshold=0,
        location="w.bin",
    )
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    with pytest.raises(
        NetworkError, match=r"a.onnx: its weights .*snapshot/w.bin are a symbolic link.*cp -rL"
    ):
        read_onnx(snapshot / "a.onnx")


@pytest.mark.parametrize("image_size", [8, -1])
def test_a_size_of_minus_one_is_dynamic(
    make_onnx: MakeOnnx, export: Callable[..., ModelConfig], image_size: int
) -> None:
    network = make_onnx(shape=(-1, 3, image_size, image_size))
    config = export(network, **({} if image_size == 8 else {"image_size": 8}))
    assert list(config.input[0].dims) == [3, 8, 8]


def test_log_probabilities_are_logits(make_onnx: MakeOnnx, export: Callable[..., ModelConfig]) -> None:
    export(make_onnx(last=("LogSoftmax", "Identity")))


def test_a_dynamic_image_size_must_be_chosen(make_onnx: MakeOnnx, export: Callable[..., ModelConfig]) -> None:
    dynamic = make_onnx(shape=("n", "c", "h", "w"))
    with pytest.raises(NetworkError, match=r"a.onnx takes images of any size; choose one with --image-size"):
        export(dynamic)
    config = export(dynamic, image_size=6, name="square")
    assert list(config.input[0].dims) == [3, 6, 6]
    config = export(dynamic, image_size=(6, 12), stretch=True)
    assert list(config.input[0].dims) == [3, 6, 12]
    assert json.loads(config.parameters["preprocessing"].string_value)["resize_size"] is None


def test_a_named_output(make_onnx: MakeOnnx, export: Callable[..., ModelConfig]) -> None:
    file = make_onnx(outputs=("scores", "features"))
    for options, message in (
        ({}, "several outputs"),
        ({"output": "x"}, "has no output 'x', only scores, features"),
    ):
        with pytest.raises(NetworkError, match=message):
            export(file, **options)
    assert list(export(file, output="scores").ensemble_scheduling.step[0].output_map) == ["scores"]


def test_sample_images(make_onnx: MakeOnnx, export: Callable[..., ModelConfig], tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "deeper"
    folder.mkdir(parents=True)
    with pytest.raises(DescriptionError, match="has 0 images; at least two"):
        export(make_onnx(), samples=folder.parent)
    for index, size in enumerate([(8, 8), (30, 20), (9, 50)]):
        Image.new("L", size, 60 * index).save(folder / f"{index}.png")
    config = export(make_onnx(), samples=folder.parent, interpolation="bicubic")
    assert json.loads(config.parameters["provenance"].string_value)["export"]["images"] == 3 + 4
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(DescriptionError, match=r"bad.png cannot be decoded"):
        export_onnx(
            [make_onnx()],
            tmp_path / "r",
            name="x",
            labels=tmp_path / "labels.txt",
            mean=[0] * 3,
            std=[1] * 3,
            samples=folder,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (1, 3, 8, 8)}, "its batch size is fixed at 1; export it with a dynamic batch size"),
        ({"shape": ("n", 8, 8, 3)}, "its input is .x8x8x3, channels last"),
        ({"shape": ("n", 1, 8, 8)}, "with 1 channels; images have 3"),
        ({"shape": ("n", 3, 64)}, r"has the shape .x3x64, but images are \[N, 3, H, W\]"),
        ({"element": TensorProto.FLOAT16}, "its images 'pixels' are FLOAT16; input and output must be FLOAT"),
        ({"element": TensorProto.UINT8}, "are UINT8"),
        ({"shape": ("n", "h", "w", 3)}, "its input is .x.x.x3, channels last"),
        (
            {"last": ("Softmax",)},
            "gives probabilities or one-hot classes, .*without its last softmax",
        ),
        (
            {"last": ("Sigmoid", "Flatten", "Identity")},
            "gives values between 0 and 1; members must",
        ),
        ({"last": ("RandomNormalLike",)}, "its logits for the same images differ by .* from run to run"),
        ({"training": True}, "its logits .*; export it in eval mode"),
        ({"scale": float("nan")}, "its logits are not all finite for random pixels"),
        ({"opset": 99}, "ONNX"),
    ],
)
def test_unsuitable_networks(
    make_onnx: MakeOnnx, export: Callable[..., ModelConfig], options: dict[str, object], message: str
) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        export(make_onnx(**options))
    assert "a.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_logits_must_not_depend_on_the_rest_of_the_batch(
    export: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["centred"]),
            helper.make_node("Slice", ["centred", "starts", "ends"], ["part"]),
            helper.make_node("Flatten", ["part"], ["y"]),
        ],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, ["n", 5])],
        [
            helper.make_tensor("starts", TensorProto.INT64, [4], [0, 0, 0, 0]),
            helper.make_tensor("ends", TensorProto.INT64, [4], [99, 1, 1, 5]),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        tmp_path / "x.onnx",
    )
    with pytest.raises(ParityError, match="those of the same image in a batch"):
        export(tmp_path / "x.onnx")


def test_members_must_differ_and_take_the_same_images(
    make_onnx: MakeOnnx, export: Callable[..., ModelConfig]
) -> None:
    with pytest.raises(DescriptionError, match="give at least one ONNX file"):
        export()
    first = make_onnx("a.onnx")
    with pytest.raises(NetworkError, match="are the same network"):
        export(first, make_onnx("b.onnx"))
    with pytest.raises(NetworkError, match=r"the same size, not 8x8 \(.*a.onnx\), 16x16 \(.*b.onnx\)"):
        export(first, make_onnx("b.onnx", seed=1, shape=("n", 3, 16, 16)))


def test_labels_must_match_the_classes(
    make_onnx: MakeOnnx, export: Callable[..., ModelConfig], labels_file: Path
) -> None:
    labels_file.write_text("a\nb\n")
    with pytest.raises(NetworkError, match="gives 5 classes, but there are 2 labels"):
        export(make_onnx())


@pytest.mark.parametrize(
    "content", [b"a\nb\n", b"a\nb", b"\xef\xbb\xbfa\r\nb\r\n\r\n", b"a \n\tb\n\n\n", b"a\rb"]
)
def test_label_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "l").write_bytes(content)
    assert read_labels(tmp_path / "l") == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no labels"),
        (b"\n\n", "has no labels"),
        (b"a\n\nb\n", "line 2 is blank"),
        (b"\na\n", "line 1 is blank"),
        (b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_invalid_label_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "l").write_bytes(content)
    with pytest.raises(DescriptionError, match=message):
        read_labels(tmp_path / "l")
    with pytest.raises(DescriptionError, match="cannot be read"):
        read_labels(tmp_path / "none")


def test_classes_of_the_same_name_stay_different_classes(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    labels = ["crane", "dog", "crane", "maillot", "maillot"]
    values = {"mean": [0.5] * 3, "std": [0.25] * 3, "name": "own"}
    report = export_onnx([make_onnx()], tmp_path / "repository", labels=labels, **values)
    assert [note.split(";")[0] for note in report.notes] == [
        "classes 0, 2 have the same label 'crane'",
        "classes 3, 4 have the same label 'maillot'",
    ]
    assert report.to_json()["notes"] == report.notes
    folder = tmp_path / "repository/own"
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == labels
    config = text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), ModelConfig())
    assert json.loads(config.parameters["labels"].string_value) == labels
