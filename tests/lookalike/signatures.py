"""Generate lookalike/commands.py, the functions of the Python API, from the options table."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from typing import Any

from jobs.config.options import REQUIRED, Option
from jobs.config.verbs import VERBS
from lookalike.input_types import data_kind

LEFT_OUT = {"json", "debug"}
"""Options without a meaning for a function: it returns a Result, and an error has a traceback."""

_HEADER = '''"""The commands as functions, with the options of the command line as arguments.

Generated from `jobs/config/options.py` and `jobs/cli.py` by `make docs`. A default of None is the
one that the description states.
"""

from __future__ import annotations

from typing import Literal

from lookalike.input_types import Backbone, Ids, Images, ImagesOrVectors, Labels, Path, Vectors
from lookalike.result import Result
from lookalike.run_command import run_command

# ruff: noqa: A002 - names of options
'''

_FROM_MEMORY = """
    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.
"""

_RAISES = """
    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
"""

_LINE_LENGTH = 100

_PLAIN_TYPES = {int: "int", float: "float", str: "str", bool: "bool", "path": "Path"}
_PARSED_TYPES = {"size": "int | str", "recall": "float | str", "factory": "str"}


def commands_module() -> str:
    """Return the source of lookalike/commands.py."""
    return "\n\n".join([_HEADER, *map(_function, VERBS)])


def _function(verb: str) -> str:
    fields = [field for field in dataclasses.fields(VERBS[verb].settings) if _is_argument(field)]
    fields.sort(key=lambda field: _default(field) is not None)
    positional = [field for field in fields if "option" not in field.metadata]
    arguments = [f"    {field.name}: Path," for field in positional]
    arguments.append("    *,")
    arguments += [_argument(verb, field) for field in fields if field not in positional]
    lines = [f"def {verb}(", *arguments, ") -> Result:", *_docstring(verb, fields)]
    return "\n".join([*lines, f'    return run_command("{verb}", locals())']) + "\n"


def _is_argument(field: Any) -> bool:
    return field.name not in LEFT_OUT


def _default(field: Any) -> str | None:
    """Return the source of the default of an argument, None if it is required."""
    option = field.metadata.get("option")
    if option is None or option.default is REQUIRED:
        return None
    if option.type == "recall":
        return repr(float(option.default))
    return '"' + option.default + '"' if isinstance(option.default, str) else repr(option.default)


def _argument(verb: str, field: Any) -> str:
    default = _default(field)
    line = f"    {field.name}: {_type(verb, field.metadata['option'])}" + (
        "," if default is None else f" = {default},"
    )
    if len(line) <= _LINE_LENGTH:
        return line
    head, choices, tail = re.split(r"(?<=Literal\[)|(?=\])", line)  # as ruff breaks it
    return f"{head}\n        {choices}\n    {tail}"


def _type(verb: str, option: Option) -> str:
    if option.choices:
        kind = "Literal[" + ", ".join(f'"{choice}"' for choice in option.choices) + "]"
    else:
        data = "Backbone" if option.name == "backbone" else data_kind(verb, option.name)
        kind = data or _PARSED_TYPES.get(option.type) or _PLAIN_TYPES[option.type]
    return f"{kind} | None" if option.default is None else kind


def _docstring(verb: str, fields: list[Any]) -> list[str]:
    lines = [f'    """{VERBS[verb].help}']
    if any(data_kind(verb, field.name) for field in fields):
        lines += _FROM_MEMORY.rstrip().split("\n")
    lines += ["", "    Args:"]
    for field in fields:
        option = field.metadata.get("option")
        text = "Output to check." if option is None else _with_names(option.help)
        lines += textwrap.wrap(
            f"{field.name}: {text}", 98, initial_indent=" " * 8, subsequent_indent=" " * 12,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return [*lines, *_RAISES.rstrip().split("\n"), '    """']


def _with_names(text: str) -> str:
    """Return a help text with the names of arguments instead of flags."""
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda match: match[1].replace("-", "_"), text)
