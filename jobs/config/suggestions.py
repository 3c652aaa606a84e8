"""Messages for mistyped verbs, options and values, with the names that were probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from jobs.config.help import verb_options
from jobs.config.verbs import VERBS


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …` with the most similar known names; empty if none is similar."""
    similar = get_close_matches(name.lower(), list(known), n=2)
    return f"; did you mean {' or '.join(similar)}" if similar else ""


def unknown_verb(name: str) -> str:
    """Return the message for a command that does not exist."""
    return (
        f"there is no command {name}{did_you_mean(name, VERBS)}; lookalike --help lists the "
        "commands"
    )


def unknown_option(verb: str, flag: str, flags: Iterable[str]) -> str:
    """Return the message for an option that a verb does not have.

    Args:
        verb: The verb.
        flag: The option as it was typed.
        flags: The options of the verb.
    """
    name = flag.lstrip("-").replace("-", "_")
    owners = [other for other, value in VERBS.items() if name in verb_options(value)]
    others = f", which is an option of {', '.join(owners)}" if owners else ""
    suggestion = did_you_mean(flag, flags)
    return f"{verb} has no option {flag}{others}{suggestion}; lookalike {verb} --help-all lists all"


def unknown_value(value: str, choices: Iterable[str]) -> str:
    """Return the message for a value that is none of the choices of an option."""
    known = list(choices)
    return f"{value!r} is not known{did_you_mean(value, known)}; write one of {', '.join(known)}"
