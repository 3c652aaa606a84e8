"""What a verb answers, for a person and for a program, and how it gets to stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from jobs.runtime.progress import visible
from retrieval.core.errors import StorageFailure

MARK = "LOOKALIKE_ANSWER_MARK"
"""Set where `submit.py` reads the log of a job: what its answer is to stand behind."""


@dataclass(frozen=True)
class Result:
    """What a verb answers: flat values for `--json`, lines for a person, an exit code."""

    values: Mapping[str, Any]
    lines: tuple[str, ...]
    exit_code: int = 0

    def as_json(self) -> str:
        """Give one JSON object on one line."""
        return json.dumps(self.values, ensure_ascii=False, default=str)

    def as_text(self) -> str:
        """Give the summary a person reads."""
        return visible("\n".join(self.lines))


def stdout_aside() -> TextIO:
    """Keep descriptor 1 for the result; whatever else prints to it lands on stderr."""
    sys.stdout.flush()
    aside = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape")
    os.dup2(2, 1)
    return aside


def put_answer(aside: TextIO, text: str) -> None:
    """Write the answer; in the log of a job as one line of ASCII behind its mark."""
    mark = os.environ.get(MARK)
    try:
        aside.write(f"{mark}{json.dumps(text + chr(10))}\n" if mark else f"{text}\n")
        aside.flush()
    except BrokenPipeError:  # whoever reads it, as `head` does, has seen enough
        return
    except OSError as error:
        raise StorageFailure(
            f"the answer could not be written to stdout ({error.strerror}); everything else is "
            "done: make room and run the same command again, which only tells it"
        ) from error
