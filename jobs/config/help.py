"""Help texts of the command line: the usual options of a verb, or all of them by subject."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import click

from jobs.config.options import GROUPS, REQUIRED, Option
from jobs.config.verbs import Verb

LINE_LENGTH = 100
"""Longest line of the help on a terminal that is wide enough."""

EXIT_CODES = (
    "Exit codes: 0 done · 1 unexpected error · 2 usage · 3 input missing or unreadable · "
    "4 too many images failed · 5 recall or a measure below its bound · "
    "6 made with other settings or another model · "
    "7 something on disk is missing, extra or altered · 8 stalled · 130 interrupted · "
    "143 terminated"
)

_SHOW_ALL = "jobs.config.help.show_all"  # key in the context of click
_TERM_WIDTH = 24  # characters of an option and its value
_DESCRIPTION_WIDTH = LINE_LENGTH - _TERM_WIDTH - 6  # characters of the description beside it
_HELP_ROWS = (
    ("-h, --help", "Show the usual options and exit."),
    ("--help-all", "Show all options, by subject and in detail, and exit."),
)
_VALUE_NAMES: dict[Any, str] = {int: "N", float: "NUMBER", str: "TEXT"}


def verb_options(verb: Verb) -> dict[str, Option]:
    """Return the options of a verb by name, in the order of its settings."""
    fields = dataclasses.fields(verb.settings)
    return {field.name: field.metadata["option"] for field in fields if "option" in field.metadata}


def value_name(option: Option) -> str:
    """Return what stands for the value of an option in its help; empty for a flag."""
    if option.type is bool:
        return ""
    if option.choices:
        return "|".join(option.choices) if _fits_choices(option) else "NAME"
    return _VALUE_NAMES.get(option.type, str(option.type).upper())


def _fits_choices(option: Option) -> bool:
    """Return whether an option and its choices fit in the left column."""
    return len(f"{option.flag} {'|'.join(option.choices)}") <= _TERM_WIDTH


def describe_in_full(option: Option) -> str:
    """Return the whole description of an option, with its choices and its default."""
    hidden_choices = bool(option.choices) and not _fits_choices(option)
    listed = f" [{', '.join(option.choices)}]" if hidden_choices else ""
    missing = option.default is None and "default:" not in option.help
    return option.help + listed + (" [default: none]" if missing else _format_default(option))


def summarize(option: Option) -> str:
    """Return the description of an option on one line: its first clause, and its default."""
    clauses = _clauses(option.help)
    stated = [clause for clause in clauses[1:] if clause.startswith("default:")]
    default = f" [{stated[0]}]" if stated else _format_default(option)
    line = clauses[0] + default
    if len(line) > _DESCRIPTION_WIDTH:
        line = re.sub(r" \([^()]*\)", "", clauses[0]) + default
    return line


def _clauses(text: str) -> list[str]:
    """Return the clauses of a description: split at `;` and `:`, but not in parentheses."""
    parts = [""]
    for word in text.rstrip(".").split(" "):
        parts[-1] += f" {word}" if parts[-1] else word
        inside = parts[-1].count("(") > parts[-1].count(")")
        if word[-1:] in (";", ":") and word != "default:" and not inside:
            parts[-1] = parts[-1][:-1]
            parts.append("")
    return parts


def _format_default(option: Option) -> str:
    if option.default is REQUIRED:
        return " [required]"
    if option.type is bool:
        return " [default: on]" if option.default else ""
    return "" if option.default is None else f" [default: {option.default}]"


class VerbCommand(click.Command):
    """The command of a verb, whose help shows the usual options first."""

    def __init__(self, name: str, verb: Verb, params: list[click.Parameter], **rest: Any) -> None:
        self.verb = verb
        show_all = click.Option(
            ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_print_all
        )
        super().__init__(name, params=[*params, show_all], help=verb.help, **rest)

    def complete_help(self, ctx: click.Context) -> str:
        """Return the help with all options."""
        ctx.meta[_SHOW_ALL] = True
        return self.get_help(ctx)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the parts of the usage line: required options, [OPTIONS] and arguments."""
        available = verb_options(self.verb)
        required = [
            f"{available[name].flag} {value_name(available[name])}"
            for name in self.verb.usual
            if available[name].default is REQUIRED
        ]
        return required + super().collect_usage_pieces(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples, and the usual options or all of them by subject."""
        with formatter.section("Examples"):
            for example in self.verb.examples:  # on one line each, to be copied
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        available = verb_options(self.verb)
        if ctx.meta.get(_SHOW_ALL):
            for group, names in GROUPS.items():
                chosen = [available[name] for name in names if name in available]
                _write_options(formatter, group, chosen, describe_in_full)
        else:
            usual = [available[name] for name in self.verb.usual]
            title = "Usual options" if len(usual) < len(available) else "Options"
            _write_options(formatter, title, usual, summarize)
        with formatter.section(f"Help on all {len(available)} options"):
            formatter.write_dl(_HELP_ROWS)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes below the help with all options."""
        if ctx.meta.get(_SHOW_ALL):
            formatter.write_paragraph()
            formatter.write_text(EXIT_CODES)


def _print_all(ctx: click.Context, _: click.Parameter, requested: bool) -> None:
    if requested and isinstance(ctx.command, VerbCommand):
        click.echo(ctx.command.complete_help(ctx))
        ctx.exit()


def _write_options(
    formatter: click.HelpFormatter, title: str, options: Iterable[Option],
    describe: Callable[[Option], str],
) -> None:  # fmt: skip
    rows = [(_term(option), describe(option)) for option in options]
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=_TERM_WIDTH)


def _term(option: Option) -> str:
    if option.type is bool and option.default:
        return f"{option.flag} / --no-{option.flag[2:]}"
    return f"{option.flag} {value_name(option)}".rstrip()
