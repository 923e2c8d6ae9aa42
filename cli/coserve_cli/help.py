"""Help as plain text, which never cuts an option's name; importing Rich takes as long as everything else."""

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

WORDS = {
    "str": "TEXT",
    "int": "N",
    "integer": "N",
    "float": "NUMBER",
    "path": "PATH",
    "Path": "PATH",
}
"""What help calls the values of an option, by Typer's name of their type."""


class PlainCommand(TyperCommand):
    """A command whose help lists its options under the titles of their panels."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes | {"rich_markup_mode": None})
        for parameter in self.params:
            if parameter.param_type_name == "argument" and parameter.metavar is None:
                parameter.metavar = str(parameter.name).upper()

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line; only optional arguments have brackets."""
        return [re.sub(r"\{(.*)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options without a panel, and the options of each panel."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            names, text = record
            usual = "Options"
            if parameter.param_type_name == "argument":
                usual = "Arguments"
                names = str(parameter.metavar)
            title = getattr(parameter, "rich_help_panel", None) or usual
            sections.setdefault(title, []).append((_name_values(names), text))
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class PlainGroup(TyperGroup):
    """A group whose help lists its commands with all of their first paragraph; it must not be cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands."""
        records = [(name, _first_paragraph(command.help or "")) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(records)


def _first_paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def _name_values(names: str) -> str:
    """Replace Typer's name of a type, such as `<list[str]>` or `<int range>`, by a plain word."""
    described = re.fullmatch(r"(.*) <(?:list\[)?([^\]>]*?)(?: range)?\]?>", names)
    if described is None:
        return names
    return f"{described[1]} {WORDS.get(described[2], described[2])}"
