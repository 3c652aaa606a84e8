"""Settings of a command from the arguments of its function."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any

from jobs.config.options import VALUE_PARSERS, Option, validate_settings
from jobs.config.verbs import VERBS
from retrieval.core.errors import UsageError


def make_settings(verb: str, arguments: Mapping[str, Any]) -> Any:
    """Return the settings of a verb; options that are not among the arguments have their default.

    Raises UsageError, as the command line does, for a value of a wrong type or range.
    """
    values = {}
    for field in dataclasses.fields(VERBS[verb].settings):
        if field.name not in arguments:
            continue
        option, value = field.metadata.get("option"), arguments[field.name]
        values[field.name] = _path(field.name, value) if option is None else _value(option, value)
    settings = VERBS[verb].settings(**values)
    validate_settings(settings)
    return settings


def _value(option: Option, value: Any) -> Any:
    """Return the value that the settings hold for an argument."""
    if value is None and option.default is None:
        return None
    if parse := VALUE_PARSERS.get(option.type):
        try:
            return parse(str(value))
        except ValueError as error:
            raise UsageError(f"{option.flag}: {error}") from error
    return _CONVERTERS[option.type](option.flag, value)


def _path(flag: str, value: Any) -> str:
    try:
        return os.fsdecode(value)
    except TypeError:
        raise UsageError(
            f"{flag}: {type(value).__name__} is no path; pass a path or a URI"
        ) from None


def _integer(flag: str, value: Any) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise UsageError(f"{flag} {value!r}: pass an integer")


def _number(flag: str, value: Any) -> float:
    if not isinstance(value, bool | str | bytes):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise UsageError(f"{flag} {value!r}: pass a number")


def _truth(flag: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise UsageError(f"{flag} {value!r}: pass True or False")


def _text(flag: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise UsageError(f"{flag} {value!r}: pass a string")


_CONVERTERS: dict[Any, Callable[[str, Any], Any]] = {
    "path": _path, int: _integer, float: _number, bool: _truth, str: _text,
}  # fmt: skip
