"""The command line: a verb is a module that is loaded when it is called.

stdout holds the result and nothing else. Ray and its workers print there too, so at the start
descriptor 1 is set aside for the result and everything else that is written to it goes to stderr.
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
from jobs.cluster.submit import dashboard_of, submit
from jobs.config import options, settings
from jobs.config.option import REQUIRED, Option
from jobs.config.parsing import PARSERS
from jobs.runtime.interrupts import GOES_ON, Interrupts, exit_code, sentence
from jobs.runtime.progress import say
from jobs.runtime.result import put_answer, stdout_aside
from retrieval.core.errors import InputError, LookalikeError


@dataclass(frozen=True)
class Verb:
    """One command: its settings, the module that has its `start`, and its line of help."""

    settings: type
    module: str
    help: str


VERBS: dict[str, Verb] = {
    "run": Verb(settings.RunSettings, "jobs.commands.run",
                "The whole job: embed both folders, index, rank, evaluate, report."),
    "embed": Verb(settings.EmbedSettings, "jobs.embedding.embed", "Images to a store of vectors."),
    "index": Verb(settings.IndexSettings, "jobs.indexing.index", "A store to a sharded IVF index."),
    "rank": Verb(settings.RankSettings, "jobs.ranking.rank", "Queries to ranked matches."),
    "evaluate": Verb(settings.EvaluateSettings, "jobs.evaluation.evaluate",
                     "Matches and labels to measures."),
    "report": Verb(settings.ReportSettings, "jobs.reporting.report",
                   "Matches to a page with pictures."),
    "train": Verb(settings.TrainSettings, "jobs.training.train", "Labelled images to a bundle."),
    "predict": Verb(settings.PredictSettings, "jobs.commands.predict",
                    "Images to their classes, by a bundle that `train` made."),
    "compare": Verb(settings.CompareSettings, "jobs.comparison.compare",
                    "Which network retrieves best on labelled images? Without --data: the list."),
    "verify": Verb(settings.VerifySettings, "jobs.commands.verify",
                   "Is an output whole and unaltered, and how far is it?"),
    "plan": Verb(settings.PlanSettings, "jobs.planning.plan",
                 "Before you pay: how long will `run` take, what does it need, what bounds it?"),
    "demo": Verb(settings.DemoSettings, "jobs.commands.demo", "Everything on drawn sample images."),
}  # fmt: skip

_EXIT_CODES = (
    "Exit codes: 0 done · 1 unexpected error · 2 usage · 3 input missing or unreadable · "
    "4 too many images failed · 5 below a bound that was asked for · 6 does not belong together · "
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
    if option.type in PARSERS:
        common |= {"callback": _parsed, "metavar": str(option.type).upper()}
    typed = option.type if isinstance(option.type, type) else str
    kind = click.Choice(option.choices) if option.choices else typed
    return click.Option([option.flag, option.name], type=kind, **common)


def _parsed(_: click.Context, parameter: click.Parameter, value: str) -> Any:
    """Read a size or a recall where it is typed, so that inside there are numbers only."""
    parse = PARSERS[options.OPTIONS[str(parameter.name)].type]
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

    def call(**values: Any) -> None:
        _start(name, verb.settings(**values))

    return click.Command(
        name, params=parameters, callback=call, help=verb.help, epilog=_EXIT_CODES,
        context_settings={"max_content_width": 100},
    )  # fmt: skip


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name the verbs in the order a job takes them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Make one verb, when it is asked for."""
        return _command(name) if name in VERBS else None


def command_line() -> click.Group:
    """Make the command line; the help page in the docs is generated from it."""
    return _Verbs(
        "lookalike",
        help="For each of these query images, which gallery images look most alike?",
        epilog=_EXIT_CODES,
        context_settings={
            "token_normalize_func": lambda token: token.replace("_", "-"),
            "max_content_width": 100,
            "help_option_names": ["-h", "--help"],
        },
        params=[click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False,
                             callback=_version, help="Print the version and stop.")],
    )  # fmt: skip


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"lookalike {version('lookalike')}")
        ctx.exit()


def _start(name: str, settings: Any) -> None:
    options.check(settings)
    aside = stdout_aside()
    try:
        if dashboard := dashboard_of(settings):
            raise SystemExit(submit(dashboard, name, settings, aside))
        start: Callable[[Any], Any] = importlib.import_module(VERBS[name].module).start
        result = start(settings)
    except BrokenPipeError as error:  # of a connection; outside it is stdout whose reader is gone
        raise ConnectionError(str(error)) from error
    put_answer(aside, result.as_json() if settings.json else result.as_text())
    if result.exit_code:
        raise SystemExit(result.exit_code)


def main() -> None:
    """Run the command line and end with the documented exit code."""
    interrupts = Interrupts()
    others = session.running()  # a test may have its own
    try:
        code = _run(sys.argv[1:] or ["--help"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:  # whoever reads the help, as `head` does, has seen enough
        code = 0
    except BaseException as error:  # noqa: BLE001 - each gets its sentence and its code
        code = _say(*_sentence(interrupts.noticed or error))
    interrupts.ignore()
    started = session.running()
    if started is not None and started is not others:
        started.end()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)  # Ray's threads must not outlive the answer, nor change the code


def _run(words: list[str]) -> int:
    """Do what click's own `main` does, which takes any broken pipe for that of stdout."""
    commands = command_line()
    try:
        with commands.make_context("lookalike", words) as context:
            commands.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _sentence(error: BaseException) -> tuple[str, int]:
    """Return what is said of an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return f"{sentence(error)}; {GOES_ON}", exit_code(error)
    if isinstance(error, click.ClickException):
        said = error.format_message().rstrip(".")
        return f"{said}; lookalike VERB --help shows the options", error.exit_code
    if isinstance(error, LookalikeError):
        return str(error), error.exit_code
    if isinstance(error, FileNotFoundError) and str(error.strerror).startswith(_NO_TEMPORARY):
        return f"{error.strerror}; set TMPDIR to a folder that can be written", InputError.exit_code
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1


_NO_TEMPORARY = "No usable temporary directory"  # what Python's tempfile says


def _say(message: str, code: int) -> int:
    if "--debug" in sys.argv:
        with suppress(OSError):
            traceback.print_exc()
    say("error: " + " ".join(message.split()))
    return code


if __name__ == "__main__":
    from retrieval.entry import main as enter

    enter()
