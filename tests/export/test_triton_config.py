import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, ModelConfig, ModelInput, ModelInstanceGroup

from coserve_export.deployment import Deployment, Placement
from coserve_export.ensemble import Description, Member
from coserve_export.errors import DescriptionError
from coserve_export.triton_config import ensemble_config, mean_config, member_config, to_text
from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.machine.cores import Cores
from coserve_server.machine.plan import plan_workers

Describe = Callable[..., Description]
MEMBERS = [Member(b""), Member(b"", input="pixels", output="scores")]


def reread(config: ModelConfig) -> ModelConfig:
    return text_format.Parse(to_text(config), ModelConfig())


def tensors(config: ModelConfig) -> dict[str, list[int]]:
    assert all(tensor.data_type == TYPE_FP32 for tensor in (*config.input, *config.output))
    return {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}


def parameters(config: ModelConfig) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def warm_ups(config: ModelConfig) -> dict[int, dict[str, list[int]]]:
    """Return the dimensions of each input, by batch size."""
    assert all(tensor.zero_data for warm_up in config.model_warmup for tensor in warm_up.inputs.values())
    return {
        warm_up.batch_size: {name: list(tensor.dims) for name, tensor in warm_up.inputs.items()}
        for warm_up in config.model_warmup
    }


def test_member(describe: Describe) -> None:
    config = reread(member_config(describe(), 1, MEMBERS[1]))
    assert (config.name, config.backend, config.max_batch_size) == ("e_member1", "onnxruntime", 16)
    assert tensors(config) == {"pixels": [3, 8, 8], "scores": [5]}
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, ModelInstanceGroup.KIND_AUTO)
    ]
    assert parameters(config) == {"intra_op_thread_count": "1"}
    assert warm_ups(config) == {1: {"pixels": [3, 8, 8]}}
    assert config.version_policy.latest.num_versions == 2
    assert not config.response_cache.enable
    assert not config.HasField("optimization")


def test_image_clients_are_told_that_images_are_channels_first(describe: Describe) -> None:
    """Triton's image_client.py refuses an input whose format is FORMAT_NONE."""
    configs = [member_config(describe(), 0, MEMBERS[0]), ensemble_config(describe(), MEMBERS, {}, 1)]
    assert [reread(config).input[0].format for config in configs] == [ModelInput.FORMAT_NCHW] * 2
    assert {tensor.format for tensor in mean_config(describe()).input} == {ModelInput.FORMAT_NONE}


def test_mean(describe: Describe) -> None:
    config = reread(mean_config(describe()))
    assert (config.name, config.backend, config.max_batch_size) == ("e_mean", "onnxruntime", 16)
    assert tensors(config) == {"logits0": [5], "logits1": [5], "logits": [5]}
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, ModelInstanceGroup.KIND_CPU)
    ]
    assert parameters(config) == {"intra_op_thread_count": "1"}
    assert warm_ups(config) == {1: {"logits0": [5], "logits1": [5]}}
    assert config.version_policy.latest.num_versions == 2


def test_ensemble_fans_out_and_averages(describe: Describe) -> None:
    config = reread(ensemble_config(describe(), MEMBERS, {"network": "tiny"}, 3))
    assert (config.name, config.platform, config.max_batch_size) == ("e", "ensemble", 16)
    assert tensors(config) == {"images": [3, 8, 8], "logits": [5]}
    assert config.output[0].label_filename == "labels.txt"
    assert not config.instance_group
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["e_member0", "e_member1", "e_mean"]
    assert {step.model_version for step in steps} == {3}
    assert dict(steps[1].input_map) == {"pixels": "images"}
    produced = [tensor for step in steps[:-1] for tensor in step.output_map.values()]
    assert list(dict(sorted(steps[-1].input_map.items())).values()) == produced
    assert dict(steps[-1].output_map) == {"logits": "logits"}


def test_parameters_follow_the_contract(describe: Describe, preprocessing: dict[str, object]) -> None:
    config = reread(
        ensemble_config(describe(weights=[1.0, 3.0]), MEMBERS, {"network": "tiny", "new": [1]}, 1)
    )
    values = {key: json.loads(value.string_value) for key, value in config.parameters.items()}
    assert values == {
        "preprocessing": preprocessing,
        "labels": ["cat", "dog", "frog", "ship", "naïve plane"],
        "weights": [1.0, 3.0],
        "provenance": {"network": "tiny", "new": [1]},
    }
    assert "naïve" in to_text(config)


@pytest.mark.parametrize("weights", [None, [2.0, 2.0]])
def test_equal_weights_are_omitted(describe: Describe, weights: list[float] | None) -> None:
    assert "weights" not in ensemble_config(describe(weights=weights), MEMBERS, {}, 1).parameters


@pytest.mark.parametrize("value", [float("nan"), "caf\udce9"])
def test_provenance_that_json_cannot_hold_is_refused(describe: Describe, value: object) -> None:
    with pytest.raises(DescriptionError, match="provenance cannot be written as JSON"):
        ensemble_config(describe(), MEMBERS, {"dataset": value}, 1)


@pytest.mark.parametrize(
    ("placement", "groups"),
    [
        ("auto", [(ModelInstanceGroup.KIND_AUTO, [])] * 3),
        ("cpu", [(ModelInstanceGroup.KIND_CPU, [])] * 3),
        ("2", [(ModelInstanceGroup.KIND_GPU, [2])] * 3),
        ("0,3", [(ModelInstanceGroup.KIND_GPU, gpus) for gpus in ([0, 3], [3, 0], [0, 3])]),
        ("0,1,2", [(ModelInstanceGroup.KIND_GPU, [gpu]) for gpu in (0, 1, 2)]),
        (
            "0,1,2,3,4,5",
            [(ModelInstanceGroup.KIND_GPU, gpus) for gpus in ([0, 3], [1, 4], [2, 5])],
        ),
    ],
)
def test_placement(describe: Describe, placement: str, groups: list[tuple[int, list[int]]]) -> None:
    description = describe(num_members=3, deployment=Deployment(Placement.parse(placement), instances=2))
    configs = [reread(member_config(description, index, Member(b""))) for index in range(3)]
    assert [[(g.kind, list(g.gpus), g.count) for g in config.instance_group] for config in configs] == [
        [(kind, gpus, 2)] for kind, gpus in groups
    ]


@pytest.mark.parametrize(
    ("members", "options", "instances", "threads"),
    [
        (2, {}, 1, 1),
        (2, {"cores": 2}, 1, 1),
        (4, {"cores": 2}, 1, 1),
        (1, {"cores": 2}, 1, 2),
        (2, {"cores": 64}, 8, 4),
        (4, {"cores": 96}, 6, 4),
        (2, {"cores": 60}, 7, 4),
        (2, {"cores": 15}, 1, 7),
        (2, {"cores": 64, "threads": 2}, 16, 2),
        (2, {"cores": 64, "instances": 4}, 4, 8),
        (2, {"cores": 4, "instances": 4}, 4, 1),
    ],
)
def test_instances_are_sized_for_the_cores(
    describe: Describe, members: int, options: dict[str, int], instances: int, threads: int
) -> None:
    description = describe(num_members=members, deployment=Deployment(**options))
    config = reread(member_config(description, 0, MEMBERS[0]))
    kind = ModelInstanceGroup.KIND_CPU if "cores" in options else ModelInstanceGroup.KIND_AUTO
    assert list(config.instance_group) == [ModelInstanceGroup(kind=kind, count=instances)]
    assert parameters(config)["intra_op_thread_count"] == str(threads)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 8])
def test_instances_are_sized_like_workers(members: int) -> None:
    for cores in range(members, 200):
        sized = Deployment(cores=cores).sized(members)
        slices = plan_workers(Cores(cores, None), [members])
        threads = min(ThreadBudget.share(members, one.cores.nodes).threads for one in slices)
        assert (sized.instances, sized.threads) == (len(slices), threads), cores


def test_every_option_sets_its_field(describe: Describe) -> None:
    deployment = Deployment(
        Placement((1,)),
        threads=0,
        preferred_batch_sizes=(4, 16),
        queue_delay_us=500,
        parameters={"enable_mem_arena": "0"},
        cuda={"cudnn_conv_algo_search": "HEURISTIC"},
        tensorrt={"precision_mode": "FP16"},
    )
    config = reread(member_config(describe(deployment=deployment), 0, MEMBERS[0]))
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert parameters(config) == {"intra_op_thread_count": "0", "enable_mem_arena": "0"}
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(a.name, dict(a.parameters)) for a in accelerators] == [
        ("tensorrt", {"precision_mode": "FP16"}),
        ("cuda", {"cudnn_conv_algo_search": "HEURISTIC"}),
    ]
    assert list(warm_ups(config)) == [1, 4, 16]


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        ({"instances": 0}, "at least one instance"),
        ({"threads": -1}, "cannot be negative"),
        ({"cores": 0}, "at least one core, not 0"),
        ({"cores": 8, "placement": Placement((0,))}, "leave them out when placing on GPUs"),
        ({"cores": 8, "threads": 0}, "0 threads, one per core, cannot be used with cores"),
        ({"cores": 8, "threads": 2, "instances": 2}, "leave one out"),
        ({"cores": 8, "cuda": {"use_tf32": "0"}}, "cannot be used with members on the CPU"),
        ({"preferred_batch_sizes": (0,)}, "preferred batch sizes must be positive"),
        (
            {"parameters": {"enable_arena": "0"}},
            "unknown parameters of .*: enable_arena; allowed: enable_mem_arena",
        ),
        (
            {"placement": Placement(cpu=True), "cuda": {"use_tf32": "0"}},
            "cannot be used with members on the CPU",
        ),
    ],
)
def test_invalid_deployments(deployment: dict[str, Any], message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        Deployment(**deployment)


@pytest.mark.parametrize("text", ["", "gpu", "0,", "-1", "0;1", "0,2147483648"])
def test_invalid_placements(text: str) -> None:
    with pytest.raises(DescriptionError, match="placement must be auto, cpu or GPUs"):
        Placement.parse(text)


def test_preferred_batch_sizes_must_not_exceed_the_maximum(describe: Describe) -> None:
    with pytest.raises(DescriptionError, match="a preferred batch size of 17 exceeds the maximum, 16"):
        describe(deployment=Deployment(preferred_batch_sizes=(17,)))
