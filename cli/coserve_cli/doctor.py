"""`coserve doctor`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Annotated

import typer

from coserve_cli.errors import one_line

if TYPE_CHECKING:
    from coserve_cli.diagnosis import Diagnosis, Lack, Machine

NAME = 21
"""Width of the column of names."""
WIDTH = 80


def doctor(
    commands: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="Commands that have to work, such as serve and classify."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what this machine can run, and which commands lack something.

    It covers cores, memory, the processor's instructions, GPUs, engines and programs, and how to install what
    is missing. The exit status is 1 if an installed engine does not work or one of the given COMMANDs lacks
    something. Nothing is sent or changed.
    """
    from coserve_cli.main import EXTRAS

    for name in commands or ():
        if name not in EXTRAS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(EXTRAS)}", param_hint="COMMAND")

    with one_line(PackageNotFoundError, hints={PackageNotFoundError: "; run pip install . in its source"}):
        from coserve_cli.diagnosis import diagnose

        diagnosis = diagnose(EXTRAS)
    if as_json:
        content = asdict(diagnosis) | {"faults": diagnosis.faults}
        typer.echo(json.dumps(content, indent=2, default=str))
    else:
        typer.echo("\n".join(_lines(diagnosis)))
    if diagnosis.faults or any(diagnosis.commands[name] for name in commands or ()):
        raise typer.Exit(1)


def _lines(diagnosis: "Diagnosis") -> Iterator[str]:
    yield f"coserve {diagnosis.version}, Python {diagnosis.python}, {diagnosis.system}"
    yield "\nMachine"
    yield from _machine_lines(diagnosis.machine)
    yield "\nEngines"
    for engine in diagnosis.engines:
        libraries = ", ".join(f"{name} {number}" for name, number in engine.libraries.items())
        runs_on = f": {', '.join(engine.runs_on)}" if engine.runs_on else ""
        yield from _row(engine.name, f"{libraries or 'not installed'}{runs_on}")
        if engine.fault:
            yield from _row("", f"does not work: {engine.fault}")
    yield "\nPrograms"
    wheel = diagnosis.triton_wheel
    yield from _row("Triton", f"nvidia-pytriton {wheel}" if wheel else diagnosis.triton_fault or "none")
    yield from _row("perf_analyzer", str(diagnosis.perf_analyzer or "none"))
    yield from _row("Docker", _docker(diagnosis))
    yield "\nCommands"
    ready = [name for name, lacks in diagnosis.commands.items() if not lacks]
    if ready:
        yield from _row("ready", ", ".join(ready))
    for name, lacks in diagnosis.commands.items():
        yield from _lack_rows(name, lacks)
    if any(diagnosis.optional.values()):
        from coserve_cli.diagnosis import OPTIONAL

        yield "\nOptional"
        for name, lacks in diagnosis.optional.items():
            if lacks:
                yield from _row(name, f"for {OPTIONAL[name]}")
                yield from _lack_rows("", lacks)


def _machine_lines(machine: "Machine") -> Iterator[str]:
    limits = machine.limits
    affinity = limits.online if limits.affinity is None else len(limits.affinity)
    facts = [f"{machine.usable} usable of {limits.online}"]
    if affinity < limits.online:
        facts.append(f"affinity {affinity}")
    if limits.quota is not None:
        facts.append(f"quota {limits.quota:g}, shared with other processes")
    if machine.load is not None:
        facts.append(f"load {machine.load:.1f}")
    yield from _row("cores", ", ".join(facts))
    if limits.topology:
        from coserve_server.machine.topology import describe_topology

        yield from _row("topology", describe_topology(limits.topology))
    memory = machine.available_bytes
    yield from _row("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB available")
    yield from _row("processor", machine.processor.model or "unknown")
    yield from _row("instructions", ", ".join(machine.processor.features) or "none known")
    for number, gpu in enumerate(machine.gpus):
        yield from _row(f"GPU {number}", gpu)
    if not machine.gpus:
        yield from _row("GPUs", "none (nvidia-smi finds none)")


def _docker(diagnosis: "Diagnosis") -> str:
    if diagnosis.docker is None:
        return "none; docs/guides/serving/deploy.md needs it"
    engine = f"engine {diagnosis.docker}" if diagnosis.docker else "no engine answers"
    return f"{engine}, {f'Compose {diagnosis.compose}' if diagnosis.compose else 'no Compose'}"


def _lack_rows(name: str, lacks: "list[Lack]") -> Iterator[str]:
    for lack in lacks:
        yield from _row(name, f"missing: {lack.missing}" if lack.install else lack.missing)
        if lack.install:
            # Whole, so that it can be copied.
            yield f"  {'':{NAME}}{lack.install}"


def _row(name: str, text: str) -> Iterator[str]:
    """Wrap a row's text within its column."""
    import textwrap

    lines = textwrap.wrap(text, WIDTH - NAME - 2, break_long_words=False, break_on_hyphens=False)
    for index, line in enumerate(lines):
        yield f"  {name if index == 0 else '':{NAME}}{line}"
