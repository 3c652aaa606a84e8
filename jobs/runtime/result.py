"""The result of a command as text and as JSON, and its output on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from jobs.runtime.progress import visible
from retrieval.core.errors import StorageFailure

RESULT_MARK_VARIABLE = "LOOKALIKE_ANSWER_MARK"
"""Environment variable set by `submit.py`: the mark before the result in the log of a job."""


@dataclass(frozen=True)
class Result:
    """Result of a command: values for `--json`, lines of text, and the exit code."""

    values: Mapping[str, Any]
    lines: tuple[str, ...]
    exit_code: int = 0

    def as_json(self) -> str:
        """Return the values as one JSON object on one line."""
        return json.dumps(self.values, ensure_ascii=False, default=str)

    def as_text(self) -> str:
        """Return the lines as text, with control characters escaped."""
        return visible("\n".join(self.lines))


def redirect_stdout() -> TextIO:
    """Return a file on the real stdout, and redirect descriptor 1 to stderr."""
    sys.stdout.flush()
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape")
    os.dup2(2, 1)
    return stdout


def write_result(stdout: TextIO, text: str) -> None:
    """Write the result to stdout; in the log of a job as one line of ASCII after its mark.

    Raises StorageFailure if the disk that stdout is redirected to is full.
    """
    mark = os.environ.get(RESULT_MARK_VARIABLE)
    try:
        stdout.write(f"{mark}{json.dumps(text + chr(10))}\n" if mark else f"{text}\n")
        stdout.flush()
    except BrokenPipeError:  # the reader of stdout, such as `head`, has closed it
        return
    except OSError as error:
        raise StorageFailure(
            f"the result could not be written to stdout ({error.strerror}); everything else is "
            "finished: free some space and run the same command again, which only prints it"
        ) from error
