"""The command line: verbs, their options, error messages and exit codes.

The module of a verb is imported when the verb is called. stdout receives the result only: since Ray
and its workers print there too, the descriptor of stdout is duplicated for the result at the start,
and everything else that is written to descriptor 1 goes to stderr.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

from jobs.cluster import session
from jobs.cluster.submit import dashboard_address, submit
from jobs.config import options, settings
from jobs.config.options import REQUIRED, VALUE_PARSERS, Option
from jobs.runtime.interrupts import CONTINUE_HINT, Interrupts, describe_interrupt, exit_code
from jobs.runtime.progress import print_message
from jobs.runtime.result import redirect_stdout, write_result
from retrieval.core.errors import InputError, LookalikeError


@dataclass(frozen=True)
class Verb:
    """One command: its settings class, the module with its `start` function, and its help text."""

    settings: type
    module: str
    help: str


VERBS: dict[str, Verb] = {
    "run": Verb(settings.RunSettings, "jobs.commands.run",
                "Embed, index, rank, evaluate and report in one command."),
    "embed": Verb(settings.EmbedSettings, "jobs.embedding.embed",
                  "Embed images into a store of vectors."),
    "index": Verb(settings.IndexSettings, "jobs.indexing.index",
                  "Build a sharded IVF index from a store."),
    "rank": Verb(settings.RankSettings, "jobs.ranking.rank",
                 "Find the most similar gallery images of each query."),
    "evaluate": Verb(settings.EvaluateSettings, "jobs.evaluation.evaluate",
                     "Measure the quality of matches against labels."),
    "report": Verb(settings.ReportSettings, "jobs.reporting.report",
                   "Write an HTML report of matches with pictures."),
    "train": Verb(settings.TrainSettings, "jobs.training.train",
                  "Train a bundle on labelled images."),
    "predict": Verb(settings.PredictSettings, "jobs.commands.predict",
                    "Classify images with a bundle written by train."),
    "compare": Verb(settings.CompareSettings, "jobs.comparison.compare",
                    "Compare backbones on labelled images, or list them."),
    "verify": Verb(settings.VerifySettings, "jobs.commands.verify",
                   "Check that an output is complete and unaltered."),
    "plan": Verb(settings.PlanSettings, "jobs.planning.plan",
                 "Estimate the time, memory and disk space of a run."),
    "demo": Verb(settings.DemoSettings, "jobs.commands.demo",
                 "Run every step on generated sample images."),
}  # fmt: skip

_EXIT_CODES = (
    "Exit codes: 0 done · 1 unexpected error · 2 usage · 3 input missing or unreadable · "
    "4 too many images failed · 5 recall or a measure below its bound · "
    "6 made with other settings or another model · "
    "7 something on disk is missing, extra or altered · 8 stalled · 130 interrupted · "
    "143 terminated"
)


def _parameter(option: Option) -> click.Option:
    required = option.default is REQUIRED
    common: dict[str, Any] = {"help": option.help, "required": required}
    if not required:
        common |= {"default": option.default, "show_default": option.default is not None}
    if option.type is bool:
        names = f"{option.flag}/--no-{option.flag[2:]}" if option.default else option.flag
        return click.Option([names], is_flag=True, **common)
    if option.type in VALUE_PARSERS:
        common |= {"callback": _parse_value, "metavar": str(option.type).upper()}
    value_type = option.type if isinstance(option.type, type) else str
    click_type = click.Choice(option.choices) if option.choices else value_type
    return click.Option([option.flag, option.name], type=click_type, **common)


def _parse_value(_: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """Parse a size, a recall or a kind of index as a click callback; None is no value."""
    if value is None:
        return None
    parse = VALUE_PARSERS[options.OPTIONS[str(parameter.name)].type]
    try:
        return parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _command(name: str) -> click.Command:
    verb = VERBS[name]
    parameters: list[click.Parameter] = []
    for field in dataclasses.fields(verb.settings):
        if "option" in field.metadata:
            parameters.append(_parameter(field.metadata["option"]))
        else:
            parameters.append(click.Argument([field.name]))
    parameters.sort(key=lambda parameter: not parameter.required)

    def callback(**values: Any) -> None:
        _start(name, verb.settings(**values))

    return click.Command(
        name, params=parameters, callback=callback, help=verb.help, epilog=_EXIT_CODES,
        context_settings={"max_content_width": 100},
    )  # fmt: skip


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs in the order in which a job uses them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command of one verb."""
        return _command(name) if name in VERBS else None


def command_line() -> click.Group:
    """Return the command line; docs/options.md is generated from it."""
    return _Verbs(
        "lookalike",
        help="Find the most similar gallery images of each query image, for whole folders.",
        epilog=_EXIT_CODES,
        context_settings={
            "token_normalize_func": lambda token: token.replace("_", "-"),
            "max_content_width": 100,
            "help_option_names": ["-h", "--help"],
        },
        params=[click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False,
                             callback=_version, help="Print the version and exit.")],
    )  # fmt: skip


def _version(ctx: click.Context, _: click.Parameter, requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        click.echo(f"lookalike {version('lookalike')}")
        ctx.exit()


def _start(name: str, settings: Any) -> None:
    options.validate_settings(settings)
    stdout = redirect_stdout()
    try:
        if dashboard := dashboard_address(settings):
            raise SystemExit(submit(dashboard, name, settings, stdout))
        start: Callable[[Any], Any] = importlib.import_module(VERBS[name].module).start
        result = start(settings)
    except BrokenPipeError as error:
        # of a network connection: `main` takes a BrokenPipeError for a closed stdout
        raise ConnectionError(str(error)) from error
    write_result(stdout, result.as_json() if settings.json else result.as_text())
    if result.exit_code:
        raise SystemExit(result.exit_code)


def main() -> None:
    """Run the command line and exit with the documented exit code."""
    interrupts = Interrupts()
    earlier_session = session.running_session()  # a test may have started one
    try:
        code = _run(sys.argv[1:] or ["--help"])
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else 1
    except BrokenPipeError:  # the reader of stdout, such as `head`, has closed it
        code = 0
    except BaseException as error:  # noqa: BLE001 - reported as a message and an exit code
        code = _print_error(*_describe_error(interrupts.noticed or error))
    interrupts.ignore()
    current_session = session.running_session()
    if current_session is not None and current_session is not earlier_session:
        current_session.end()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)  # Ray's threads must neither delay the exit nor change its code


def _run(arguments: list[str]) -> int:
    """Run the command line without click's `main`, which takes any broken pipe for stdout's."""
    commands = command_line()
    try:
        with commands.make_context("lookalike", arguments) as context:
            commands.invoke(context)
    except click.exceptions.Exit as request:
        return request.exit_code
    return 0


def _describe_error(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, KeyboardInterrupt):
        return f"{describe_interrupt(error)}; {CONTINUE_HINT}", exit_code(error)
    if isinstance(error, click.ClickException):
        message = error.format_message().rstrip(".")
        return f"{message}; lookalike VERB --help shows the options", error.exit_code
    if isinstance(error, LookalikeError):
        return str(error), error.exit_code
    if isinstance(error, FileNotFoundError) and str(error.strerror).startswith(_NO_TEMPORARY):
        return f"{error.strerror}; set TMPDIR to a folder that can be written", InputError.exit_code
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1


_NO_TEMPORARY = "No usable temporary directory"  # start of the message of Python's tempfile


def _print_error(message: str, code: int) -> int:
    if "--debug" in sys.argv:
        with suppress(OSError):
            traceback.print_exc()
    print_message("error: " + " ".join(message.split()))
    return code


if __name__ == "__main__":
    from retrieval.entry import main as enter

    enter()
