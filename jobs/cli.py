"""The command line: verbs, their options, error messages and exit codes.

The module of a verb is imported when the verb is called. stdout receives the result only: since Ray
and its workers print there too, the descriptor of stdout is duplicated for the result at the start,
and everything else that is written to descriptor 1 goes to stderr.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

from jobs.cluster import session
from jobs.cluster.submit import dashboard_address, submit
from jobs.config import options
from jobs.config.help import EXIT_CODES, LINE_LENGTH, VerbCommand, describe_in_full
from jobs.config.options import REQUIRED, VALUE_PARSERS, Option
from jobs.config.suggestions import unknown_option, unknown_value, unknown_verb
from jobs.config.verbs import VERBS
from jobs.runtime.interrupts import CONTINUE_HINT, Interrupts, describe_interrupt, exit_code
from jobs.runtime.progress import print_message
from jobs.runtime.result import Result, redirect_stdout, write_result
from jobs.runtime.versions import installed_versions
from retrieval.core.errors import InputError, LookalikeError

_COMPLETION_VARIABLE = "_LOOKALIKE_COMPLETE"
"""Environment variable by which the script of --completion asks for the possible words."""


class _Choice(click.Choice[str]):
    """The choices of an option; a message about another value suggests similar ones."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value; fail if it is none of the choices."""
        if value not in self.choices:
            self.fail(unknown_value(value, self.choices), param, ctx)
        return str(value)


def _parameter(option: Option) -> click.Option:
    required = option.default is REQUIRED
    common: dict[str, Any] = {"help": describe_in_full(option), "required": required}
    if not required:
        common |= {"default": option.default}
    if option.type is bool:
        names = f"{option.flag}/--no-{option.flag[2:]}" if option.default else option.flag
        return click.Option([names], is_flag=True, **common)
    if option.type in VALUE_PARSERS:
        common |= {"callback": _parse_value}
    elif option.type == "path":
        common |= {"shell_complete": _complete_path}
    value_type = option.type if isinstance(option.type, type) else str
    click_type = _Choice(option.choices) if option.choices else value_type
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


def _complete_path(_: click.Context, __: click.Parameter, start: str) -> list[CompletionItem[Any]]:
    """Let the shell complete a path."""
    return [CompletionItem(start, type="file")]


def _command(name: str) -> VerbCommand:
    verb = VERBS[name]
    parameters: list[click.Parameter] = []
    for field in dataclasses.fields(verb.settings):
        if "option" in field.metadata:
            parameters.append(_parameter(field.metadata["option"]))
        else:
            parameters.append(click.Argument([field.name], shell_complete=_complete_path))
    parameters.sort(key=lambda parameter: not parameter.required)

    def callback(**values: Any) -> None:
        _start(name, verb.settings(**values))

    return VerbCommand(
        name, verb, parameters, callback=callback,
        context_settings={"max_content_width": LINE_LENGTH},
    )  # fmt: skip


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs in the order in which a job uses them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command of one verb."""
        return _command(name) if name in VERBS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the name and the command of the first argument, and the other arguments."""
        if args[0] not in VERBS and not ctx.resilient_parsing:
            raise click.UsageError(unknown_verb(args[0]), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the verbs with their whole descriptions."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


def command_line() -> click.Group:
    """Return the command line; docs/options.md is generated from it."""
    return _Verbs(
        "lookalike",
        help="Find the most similar gallery images of each query image, for whole folders.",
        epilog=f"lookalike COMMAND --help shows the options of a command.\n\n{EXIT_CODES}",
        context_settings={
            "token_normalize_func": lambda token: token.replace("_", "-"),
            "max_content_width": LINE_LENGTH,
            "help_option_names": ["-h", "--help"],
        },
        params=[
            click.Option(["--version"], is_flag=True, expose_value=False, callback=_version,
                         help="Print the versions of lookalike and of its packages, and exit."),
            click.Option(["--json"], is_flag=True, is_eager=True,
                         help="With --version: print one JSON object."),
            click.Option(["--completion"], type=_Choice(["bash", "zsh"]), is_eager=True,
                         expose_value=False, callback=_print_completion,
                         help="Print a script that completes commands, options and paths, for "
                              'eval "$(lookalike --completion bash)" in ~/.bashrc.'),
        ],
    )  # fmt: skip


def _version(ctx: click.Context, _: click.Parameter, requested: bool) -> None:
    if not requested:
        if ctx.params.get("json"):
            raise click.UsageError("--json before a command belongs to --version", ctx)
        return
    versions = {"Python": platform.python_version(), **installed_versions()}
    if ctx.params.get("json"):
        click.echo(json.dumps(versions))
    else:
        for name, version in {"lookalike": versions["lookalike"], **versions}.items():
            click.echo(f"{name} {version or '(not installed)'}")
    ctx.exit()


def _print_completion(ctx: click.Context, _: click.Parameter, shell: str | None) -> None:
    if shell:
        completion = get_completion_class(shell)
        assert completion is not None
        click.echo(completion(ctx.command, {}, "lookalike", _COMPLETION_VARIABLE).source())
        ctx.exit()


def run_verb(name: str, settings: Any) -> Result:
    """Run a verb with validated settings in this process and return its result."""
    start: Callable[[Any], Result] = importlib.import_module(VERBS[name].module).start
    with connection_errors():
        return start(settings)


@contextmanager
def connection_errors() -> Iterator[None]:
    """Raise the BrokenPipeError of a network connection as a ConnectionError.

    `run_and_exit` takes a BrokenPipeError for a closed stdout.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise ConnectionError(str(error)) from error


def _start(name: str, settings: Any) -> None:
    options.validate_settings(settings)
    stdout = redirect_stdout()
    if dashboard := dashboard_address(settings):
        with connection_errors():
            raise SystemExit(submit(dashboard, name, settings, stdout))
    result = run_verb(name, settings)
    write_result(stdout, result.as_json() if settings.json else result.as_text())
    if result.exit_code:
        raise SystemExit(result.exit_code)


def main() -> None:
    """Run the command line and exit with the documented exit code."""
    run_and_exit(lambda: _run(sys.argv[1:] or ["--help"]), _report_error)


def run_and_exit(run: Callable[[], int], report_error: Callable[[BaseException], int]) -> NoReturn:
    """Call `run`, end a Ray that it has started, and exit with the exit code that it returns.

    `report_error` gets the error that `run` raises, or the signal that caused it, and returns the
    exit code.
    """
    interrupts = Interrupts()
    earlier_session = session.running_session()  # a test may have started one
    try:
        code = run()
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else 1
    except BrokenPipeError:  # the reader of stdout, such as `head`, has closed it
        code = 0
    except BaseException as error:  # noqa: BLE001 - reported as a message and an exit code
        code = report_error(interrupts.noticed or error)
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
    if instruction := os.environ.get(_COMPLETION_VARIABLE):
        return shell_complete(commands, {}, "lookalike", _COMPLETION_VARIABLE, instruction)
    try:
        with commands.make_context("lookalike", arguments) as context:
            commands.invoke(context)
    except click.exceptions.Exit as request:
        return request.exit_code
    return 0


def describe_error(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, KeyboardInterrupt):
        return f"{describe_interrupt(error)}; {CONTINUE_HINT}", exit_code(error)
    if isinstance(error, click.ClickException):
        return _describe_usage_error(error), error.exit_code
    if isinstance(error, LookalikeError):
        return str(error), error.exit_code
    if isinstance(error, FileNotFoundError) and str(error.strerror).startswith(_NO_TEMPORARY):
        return f"{error.strerror}; set TMPDIR to a folder that can be written", InputError.exit_code
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1


def _describe_usage_error(error: click.ClickException) -> str:
    """Return what is wrong with the command line, with a suggestion."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command if context else None
    if isinstance(error, click.NoSuchOption) and isinstance(command, VerbCommand):
        flags = [flag for param in command.params for flag in (*param.opts, *param.secondary_opts)]
        return unknown_option(str(command.name), error.option_name, flags)
    message = error.format_message().rstrip(".")
    if isinstance(command, VerbCommand):
        return f"{message}; lookalike {command.name} --help shows the options"
    return message if "--help" in message else f"{message}; lookalike --help shows the commands"


_NO_TEMPORARY = "No usable temporary directory"  # start of the message of Python's tempfile


def _report_error(error: BaseException) -> int:
    """Print an error as one line on stderr, and return its exit code."""
    message, code = describe_error(error)
    if "--debug" in sys.argv:
        with suppress(OSError):
            traceback.print_exc()
    print_message("error: " + " ".join(message.split()))
    return code
