"""Generate the documentation pages that are made from the code.

`make docs` writes them; a test compares them with the committed ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import recipes_table as recipes
from benchmarks import results, scale
from jobs.cli import command_line
from jobs.config.help import VerbCommand
from jobs.config.options import OPTIONS, REQUIRED, Option
from jobs.config.verbs import VERBS
from retrieval.core.schemas import TABLES, part_table
from retrieval.evaluation.measures import MEASURES
from tests.lookalike.signatures import commands_module
from tests.retrieval.coverage import CASES, SIZES, measured_coverage

ROOT = Path(__file__).parents[1]


def options_page() -> str:
    """Return the page of all options, followed by the help of each verb with all its options."""
    lines = [
        "# Options",
        "",
        "Generated from `jobs/config/options.py` by `make docs`. Options marked *content*",
        "determine the contents of the output and are stored in job.json; options marked *run* do",
        "not change the contents.",
        "",
        "| option | default | affects | meaning |",
        "|---|---|---|---|",
        *(_option_row(option) for option in OPTIONS.values()),
    ]
    group = command_line()
    for verb in VERBS:
        context = click.Context(group, info_name="lookalike", terminal_width=100)
        command = group.get_command(context, verb)
        assert isinstance(command, VerbCommand)
        inner = click.Context(command, info_name=verb, parent=context, terminal_width=100)
        help_text = re.sub(r"\n\nHelp on all.*", "", command.complete_help(inner), flags=re.DOTALL)
        lines += ["", f"## lookalike {verb}", "", "```", help_text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _option_row(option: Option) -> str:
    default = "required" if option.default is REQUIRED else _value(option.default)
    choices = f" ({', '.join(option.choices)})" if option.choices else ""
    return f"| `{option.flag}` | {default} | {option.affects} | {option.help}{choices} |"


def _value(default: object) -> str:
    if default is None or default is False:
        return ""
    return "on" if default is True else str(default)


def measures_section() -> str:
    """Return a table of all measures."""
    lines = ["| name | key | printed | meaning | source |", "|---|---|---|---|---|"]
    for measure in MEASURES:
        texts = (measure.name, measure.key, measure.meaning)
        name, key, meaning = (text.replace("{k}", "K") for text in texts)
        printed = "yes" if measure.shown_by_default else ""
        lines.append(f"| `{name}` | `{key}` | {printed} | {meaning} | {measure.source} |")
    return "\n".join(lines) + "\n"


def coverage_section() -> str:
    """Return a table of the simulated coverage of confidence intervals."""
    lines = ["| values | " + " | ".join(f"{size} queries" for size in SIZES) + " |"]
    lines.append("|---|" + "---|" * len(SIZES))
    for case in CASES:
        shares = [measured_coverage(case, size) for size in SIZES]
        cells = " | ".join(f"{ours:.0%} (t: {student:.0%})" for ours, student in shares)
        lines.append(f"| {case} | {cells} |")
    return "\n".join(lines) + "\n"


def tables_section() -> str:
    """Return a table per table on disk, with a row per column."""
    lines = []
    for table in (*TABLES, part_table(512, "float16")):
        lines += [f"**{table.name}**, ordered by {table.order}", "", "| column | type | meaning |"]
        lines.append("|---|---|---|")
        lines += [f"| {c.name} | {c.type} | {c.meaning} |" for c in table.columns]
        lines.append("")
    return "\n".join(lines)


def with_sections(page: str, sections: dict[str, Callable[[], str]]) -> Callable[[], str]:
    """Return a function that returns a page with its generated sections brought up to date."""

    def make() -> str:
        text = (ROOT / page).read_text()
        for name, section in sections.items():
            begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
            before, after = text.split(begin)
            text = before + begin + section() + end + after.split(end)[1]
        return text

    return make


PAGES = {
    "docs/options.md": options_page,
    "lookalike/commands.py": commands_module,
    "docs/measures.md": with_sections(
        "docs/measures.md", {"measures": measures_section, "coverage": coverage_section}
    ),
    "docs/tables.md": with_sections("docs/tables.md", {"tables": tables_section}),
    "docs/backbones.md": with_sections("docs/backbones.md", {"recipes": recipes.table}),
    "docs/scale.md": with_sections("docs/scale.md", {"scale": scale.table}),
    "benchmarks/README.md": with_sections(
        "benchmarks/README.md",
        {"benchmarks": results.format_descriptions, "results": results.format_table},
    ),
}


def main() -> None:
    """Write every page."""
    for path, make in PAGES.items():
        (ROOT / path).write_text(make())


if __name__ == "__main__":
    main()
