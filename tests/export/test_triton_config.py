import json
from collections.abc import Callable

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, ModelConfig, ModelInstanceGroup

from coserve_export.ensemble import Description, Member
from coserve_export.errors import DescriptionError
from coserve_export.triton_config import ensemble_config, mean_config, member_config, to_text

Describe = Callable[..., Description]
MEMBERS = [Member(b""), Member(b"", input="pixels", output="scores")]


def reread(config: ModelConfig) -> ModelConfig:
    return text_format.Parse(to_text(config), ModelConfig())


def tensors(config: ModelConfig) -> dict[str, list[int]]:
    assert all(tensor.data_type == TYPE_FP32 for tensor in (*config.input, *config.output))
    return {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}


def test_member(describe: Describe) -> None:
    config = reread(member_config(describe(), 1, MEMBERS[1]))
    assert (config.name, config.backend, config.max_batch_size) == ("e_member1", "onnxruntime", 16)
    assert tensors(config) == {"pixels": [3, 8, 8], "scores": [5]}
    assert config.HasField("dynamic_batching")
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, ModelInstanceGroup.KIND_AUTO)
    ]
    assert not config.parameters


def test_mean(describe: Describe) -> None:
    config = reread(mean_config(describe()))
    assert (config.name, config.backend, config.max_batch_size) == ("e_mean", "onnxruntime", 16)
    assert tensors(config) == {"logits0": [5], "logits1": [5], "logits": [5]}


def test_ensemble_fans_out_and_averages(describe: Describe) -> None:
    config = reread(ensemble_config(describe(), MEMBERS, {"network": "tiny"}))
    assert (config.name, config.platform, config.max_batch_size) == ("e", "ensemble", 16)
    assert tensors(config) == {"images": [3, 8, 8], "logits": [5]}
    assert config.output[0].label_filename == "labels.txt"
    assert not config.instance_group
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["e_member0", "e_member1", "e_mean"]
    assert {step.model_version for step in steps} == {-1}
    assert dict(steps[1].input_map) == {"pixels": "images"}
    produced = [tensor for step in steps[:-1] for tensor in step.output_map.values()]
    assert list(dict(sorted(steps[-1].input_map.items())).values()) == produced
    assert dict(steps[-1].output_map) == {"logits": "logits"}


def test_parameters_are_the_contract(describe: Describe, preprocessing: dict[str, object]) -> None:
    config = reread(ensemble_config(describe(weights=[1.0, 3.0]), MEMBERS, {"network": "tiny", "new": [1]}))
    values = {key: json.loads(value.string_value) for key, value in config.parameters.items()}
    assert values == {
        "preprocessing": preprocessing,
        "labels": ["cat", "dog", "frog", "ship", "naïve plane"],
        "weights": [1.0, 3.0],
        "provenance": {"network": "tiny", "new": [1]},
    }
    assert "naïve" in to_text(config)


@pytest.mark.parametrize("weights", [None, [2.0, 2.0]])
def test_equal_weights_are_left_out(describe: Describe, weights: list[float] | None) -> None:
    assert "weights" not in ensemble_config(describe(weights=weights), MEMBERS, {}).parameters


def test_provenance_that_json_lacks_is_refused(describe: Describe) -> None:
    with pytest.raises(DescriptionError, match="provenance cannot be written as JSON"):
        ensemble_config(describe(), MEMBERS, {"accuracy": float("nan")})
