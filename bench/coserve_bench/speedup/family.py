"""Finds the networks to compare: an undivided one, and the ensembles it is divided into."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from coserve_bench.engine import exported_precision
from coserve_bench.errors import BenchError
from coserve_bench.speedup.graphs import fuse, multiply_adds, zero_weights
from coserve_export.ensemble import IMAGES, LOGITS
from coserve_export.onnx_file import read_onnx
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.ensembles.repository import read_repository

BF16 = "bf16"
TF32 = "tf32"
COMPUTED = (BF16, TF32)
"""Networks are not exported in these precisions: fp32 networks are computed in them."""


@dataclass(frozen=True)
class Division:
    """The members that a network is divided into, in one precision.

    Attributes:
        split: number of members S; with 1, the undivided network.
        precision: precision of the networks, or one of `COMPUTED`.
        ensemble: the ensemble as it is served.
        fused: the members as one network; the ensemble itself if it has a single member.
        multiply_adds: of one image through all members.
    """

    split: int
    precision: str
    ensemble: Ensemble
    fused: Ensemble
    multiply_adds: int

    @property
    def top1(self) -> float | None:
        """Accuracy of the members' mean, a fraction, as measured after training; None in `COMPUTED`."""
        if self.precision in COMPUTED:
            return None
        top1: float | None = self.ensemble.provenance.get("accuracy", {}).get("ensemble", {}).get("top1")
        return top1


@dataclass(frozen=True)
class Family:
    """Divisions of one network, including the undivided one in every precision.

    Attributes:
        missing: for the user, what was requested but is not available, and why.
    """

    network: str
    divisions: tuple[Division, ...]
    missing: tuple[str, ...]


def exported_in(precision: str) -> str:
    """Return the precision of the exported networks that are computed in a precision."""
    return "fp32" if precision in COMPUTED else precision


def read_family(
    repository: Path, network: str | None, splits: Sequence[int], precisions: Sequence[str], scratch: Path
) -> Family:
    """Read the ensembles of one network from a model repository, and fuse each of them.

    Args:
        network: the undivided network's name in their provenance; may be None if there is only one.
        splits: numbers of members to read, besides 1.
        precisions: precisions to read; those in `COMPUTED` use the fp32 ensembles.
        scratch: folder for fused networks.

    Raises:
        coserve_server.errors.RepositoryError, coserve_export.errors.NetworkError: a file cannot be read.
        BenchError: the network is ambiguous, is not in the repository, or cannot be measured.
    """
    ensembles = read_repository(repository).values()
    network = _choose_network(ensembles, network, repository)
    available = _by_precision_and_split(ensembles, network, repository)
    splits = sorted({1, *splits})
    divisions = []
    missing = []
    for precision in precisions:
        exported = exported_in(precision)
        found = [split for split in splits if (exported, split) in available]
        if found and found[0] != 1:
            raise BenchError(
                f"{repository}: {network} in {precision} lacks S=1, the undivided network to compare with"
            )
        divisions += [_division(split, precision, available[exported, split], scratch) for split in found]
        absent = ", ".join(f"S={split}" for split in splits if split not in found)
        if absent:
            reason = f"{repository} has no such ensemble of {network}{_unrecorded(ensembles, exported)}"
            missing.append(f"{precision}, {absent}: {reason}")
    if not divisions:
        raise BenchError("; ".join(missing))
    return Family(network, tuple(divisions), tuple(missing))


def _choose_network(ensembles: Iterable[Ensemble], network: str | None, repository: Path) -> str:
    """Return the given network, or the only one that the ensembles were divided from."""
    networks = sorted({name for ensemble in ensembles if (name := _network(ensemble))})
    if not networks:
        names = ", ".join(ensemble.name for ensemble in ensembles)
        raise BenchError(
            f"{repository} does not record which network its ensembles ({names}) were divided from; "
            "export runs of coserve train, which record it"
        )
    if network is None and len(networks) > 1:
        raise BenchError(f"{repository} has several networks; choose with --network: {', '.join(networks)}")
    network = networks[0] if network is None else network
    if network not in networks:
        raise BenchError(f"{repository} has no ensemble of {network}, only of {', '.join(networks)}")
    return network


def _by_precision_and_split(
    ensembles: Iterable[Ensemble], network: str, repository: Path
) -> Mapping[tuple[str, int], Ensemble]:
    """Return a network's ensembles by the precision they were exported in and their number of members."""
    available: dict[tuple[str, int], Ensemble] = {}
    for ensemble in ensembles:
        if _network(ensemble) != network:
            continue
        precision = exported_precision(ensemble)
        split = len(ensemble.members)
        if (precision, split) in available:
            raise BenchError(
                f"{repository}: {available[precision, split].name} and {ensemble.name} are both S={split} in "
                f"{precision} of {network}; only one of them can be measured"
            )
        available[precision, split] = ensemble
    return available


def _network(ensemble: Ensemble) -> str | None:
    """Return the name of the undivided network; exports of ONNX files do not record one."""
    name: str | None = ensemble.provenance.get("network")
    return name


def _unrecorded(ensembles: Iterable[Ensemble], exported: str) -> str:
    """Name the ensembles in a precision that do not record their network, for the end of a message."""
    names = [one.name for one in ensembles if not _network(one) and exported_precision(one) == exported]
    return f"; {', '.join(names)} records no network" if names else ""


def _division(split: int, precision: str, ensemble: Ensemble, scratch: Path) -> Division:
    models = [_load(ensemble, member) for member in ensemble.members]
    for member, model in zip(ensemble.members, models, strict=True):
        for name in zero_weights(model):
            raise BenchError(
                f"{member.name}: all weights of {name!r} are zero, as in an untrained network, so branches "
                "vanish and the speed means nothing; measure trained weights, or give --network "
                "without --repository for random ones"
            )
    fused = ensemble if split == 1 else _fused(ensemble, models, scratch / f"{ensemble.name}_fused.onnx")
    return Division(split, precision, ensemble, fused, sum(map(multiply_adds, models)))


def _fused(ensemble: Ensemble, models: list[onnx.ModelProto], file: Path) -> Ensemble:
    """Write the members to a file as one network, and return an ensemble of this network alone."""
    onnx.save(fuse(models, len(ensemble.labels), [member.weight for member in ensemble.members]), file)
    whole = replace(ensemble.members[0], input_name=IMAGES, output_name=LOGITS, weight=1.0, model_path=file)
    return replace(ensemble, name=f"{ensemble.name}_fused", members=(whole,))


def _load(ensemble: Ensemble, member: Member) -> onnx.ModelProto:
    """Load a member and fix its image size, which ONNX files of a user may leave free."""
    assert member.model_path is not None
    model = onnx.load_model_from_string(read_onnx(member.model_path, member.output_name).model)
    shape = model.graph.input[0].type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add(dim_param="batch")
    for size in ensemble.preprocessing.shape:
        shape.dim.add(dim_value=size)
    return model
