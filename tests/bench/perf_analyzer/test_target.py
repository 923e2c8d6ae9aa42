"""Ensembles as Triton describes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from tritonclient.grpc.model_config_pb2 import TYPE_FP16, TYPE_FP32, ModelConfig, ModelEnsembling, ModelInput
from tritonclient.grpc.service_pb2 import (
    InferStatistics,
    ModelConfigResponse,
    ModelStatistics,
    ModelStatisticsResponse,
    StatisticDuration,
)

from coserve_bench.errors import BenchError
from coserve_bench.perf_analyzer.target import TritonEnsemble


@dataclass
class Client:
    """Answers as tritonclient does; a model has served ten times as many requests as its version says."""

    dims: Sequence[int] = (3, 8, 8)
    data_type: int = TYPE_FP32
    version: int = -1
    served: Sequence[int] = (2, 10, 9)
    asked: dict[str, str] = field(default_factory=dict)

    def get_model_config(self, name: str) -> ModelConfigResponse:
        steps = [
            ModelEnsembling.Step(model_name=f"{name}_{part}", model_version=self.version)
            for part in ("member0", "member1", "mean")
        ]
        images = ModelInput(name="images", data_type=self.data_type, dims=self.dims)
        ensemble = ModelEnsembling(step=steps)
        return ModelConfigResponse(
            config=ModelConfig(name=name, input=[images], ensemble_scheduling=ensemble)
        )

    def get_server_metadata(self) -> SimpleNamespace:
        return SimpleNamespace(version="2.55.0")

    def get_inference_statistics(self, model: str, version: str) -> ModelStatisticsResponse:
        self.asked[model] = version
        statistics = [
            ModelStatistics(
                name=model,
                version=str(one),
                inference_stats=InferStatistics(success=StatisticDuration(count=10 * one)),
            )
            for one in self.served
            if version in ("", str(one))
        ]
        return ModelStatisticsResponse(model_stats=statistics)


@pytest.mark.parametrize(("version", "asked", "requests"), [(-1, "", 100), (9, "9", 90)])
def test_the_version_that_the_ensemble_runs_is_counted(version: int, asked: str, requests: int) -> None:
    client = Client(version=version)
    counts = TritonEnsemble(client, "pair").counts()  # type: ignore[arg-type]
    assert set(client.asked.values()) == {asked}
    assert {model: count.requests for model, count in counts.items()} == {
        f"pair_{part}": requests for part in ("member0", "member1", "mean")
    }


@pytest.mark.parametrize("client", [Client(dims=(3, -1, -1)), Client(dims=()), Client(data_type=TYPE_FP16)])
def test_images_that_cannot_be_made(client: Client) -> None:
    with pytest.raises(BenchError, match="pair cannot be measured: images must be FP32 and of a fixed size"):
        TritonEnsemble(client, "pair")  # type: ignore[arg-type]
