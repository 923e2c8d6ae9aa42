"""The networks to compare: one, and the ensembles it is divided into."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from coserve_bench.errors import BenchError
from coserve_bench.speedup.graphs import fuse, multiply_adds, vanishing
from coserve_bench.tune import network_precision
from coserve_export.ensemble import IMAGES, LOGITS
from coserve_export.onnx_file import read_onnx
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.ensembles.repository import read_repository

BF16 = "bf16"
"""No network is exported in it: those of fp32 are computed in it."""


@dataclass(frozen=True)
class Division:
    """The members that a network is divided into, in one precision.

    Attributes:
        split: S; 1 is the large network itself.
        precision: of the networks, or `BF16`.
        ensemble: what is served.
        fused: its members as one network; of a single member the ensemble itself.
        multiply_adds: of one image through all members.
    """

    split: int
    precision: str
    ensemble: Ensemble
    fused: Ensemble
    multiply_adds: int

    @property
    def top1(self) -> float | None:
        """Accuracy of the members' mean as it was measured after training, a fraction; in bf16 none was."""
        if self.precision == BF16:
            return None
        top1: float | None = self.ensemble.provenance.get("accuracy", {}).get("ensemble", {}).get("top1")
        return top1


@dataclass(frozen=True)
class Family:
    """Divisions of one network, the undivided among them in every precision.

    Attributes:
        missing: what was asked for and is not there, in words fit for a user.
    """

    network: str
    divisions: tuple[Division, ...]
    missing: tuple[str, ...]


def exported_in(precision: str) -> str:
    """The precision of the networks that are measured in this one."""
    return "fp32" if precision == BF16 else precision


def read_family(
    repository: Path, network: str | None, splits: Sequence[int], precisions: Sequence[str], scratch: Path
) -> Family:
    """Read the ensembles of one network from a model repository, and fuse each.

    Args:
        network: its name in their provenance; may lack where they are all of one.
        splits: those wanted, besides 1.
        precisions: likewise; bf16 takes the ensembles in fp32.
        scratch: a folder for fused networks.

    Raises:
        coserve_server.errors.RepositoryError, coserve_export.errors.NetworkError: it cannot be read.
        BenchError: it has several networks, not the one, or one that cannot be measured.
    """
    ensembles = read_repository(repository).values()
    networks = sorted({name for ensemble in ensembles if (name := _network(ensemble))})
    if not networks:
        names = ", ".join(ensemble.name for ensemble in ensembles)
        raise BenchError(
            f"{repository} does not record which network was divided into what ({names}); exports of runs do"
        )
    if network is None and len(networks) > 1:
        raise BenchError(f"{repository} has several networks; choose with --network: {', '.join(networks)}")
    network = networks[0] if network is None else network
    if network not in networks:
        raise BenchError(f"{repository} has no ensemble of {network}, only of {', '.join(networks)}")
    found = _by_precision_and_split(ensembles, network, repository)
    splits = sorted({1, *splits})
    divisions, missing = [], []
    for precision in precisions:
        exported = exported_in(precision)
        there = [split for split in splits if (exported, split) in found]
        if there and there[0] != 1:
            raise BenchError(f"{repository}: {network} in {precision} lacks S=1, the one to compare with")
        divisions += [_division(split, precision, found[exported, split], scratch) for split in there]
        absent = ", ".join(f"S={split}" for split in splits if split not in there)
        if absent:
            missing.append(
                f"{precision}, {absent}: {repository} has no such ensemble of {network}"
                f"{_unrecorded(ensembles, exported)}"
            )
    if not divisions:
        raise BenchError("; ".join(missing))
    return Family(network, tuple(divisions), tuple(missing))


def _by_precision_and_split(
    ensembles: Iterable[Ensemble], network: str, repository: Path
) -> dict[tuple[str, int], Ensemble]:
    found: dict[tuple[str, int], Ensemble] = {}
    for ensemble in ensembles:
        key = (network_precision(ensemble), len(ensemble.members))
        if _network(ensemble) != network:
            continue
        if key in found:
            raise BenchError(
                f"{repository}: {found[key].name} and {ensemble.name} are both S={key[1]} in {key[0]} of "
                f"{network}; only one of them can be measured"
            )
        found[key] = ensemble
    return found


def _network(ensemble: Ensemble) -> str | None:
    """The name of the undivided network; exports of ONNX files record none."""
    name: str | None = ensemble.provenance.get("network")
    return name


def _unrecorded(ensembles: Iterable[Ensemble], exported: str) -> str:
    """Which ensembles in a precision might be of any network, in words."""
    names = [one.name for one in ensembles if not _network(one) and network_precision(one) == exported]
    return f"; {', '.join(names)} records no network" if names else ""


def _division(split: int, precision: str, ensemble: Ensemble, scratch: Path) -> Division:
    models = [_load(ensemble, member) for member in ensemble.members]
    for member, model in zip(ensemble.members, models, strict=True):
        for name in vanishing(model):
            raise BenchError(
                f"{member.name}: all weights of {name!r} are zero, as in a network that was never trained: "
                "its branches vanish, and its speed would say nothing; measure trained weights, or give "
                "--network without --repository for random ones"
            )
    fused = ensemble if split == 1 else _fused(ensemble, models, scratch / f"{ensemble.name}_fused.onnx")
    return Division(split, precision, ensemble, fused, sum(map(multiply_adds, models)))


def _fused(ensemble: Ensemble, models: list[onnx.ModelProto], file: Path) -> Ensemble:
    """An ensemble of one network, written to a file."""
    onnx.save(fuse(models, len(ensemble.labels), [member.weight for member in ensemble.members]), file)
    whole = replace(ensemble.members[0], input_name=IMAGES, output_name=LOGITS, weight=1.0, model_path=file)
    return replace(ensemble, name=f"{ensemble.name}_fused", members=(whole,))


def _load(ensemble: Ensemble, member: Member) -> onnx.ModelProto:
    """With its image size, which files that people already have may leave free."""
    assert member.model_path is not None
    model = onnx.load_model_from_string(read_onnx(member.model_path, member.output_name).model)
    how = ensemble.preprocessing
    shape = model.graph.input[0].type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add(dim_param="batch")
    for size in how.shape:
        shape.dim.add(dim_value=size)
    return model
