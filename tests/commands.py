"""The command line as a person starts it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOKALIKE = str(Path(sys.executable).with_name("lookalike"))


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def values(self) -> dict[str, Any]:
        """The one JSON object that --json prints."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one sentence of the error."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


def lookalike(*words: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ended:
    """Run the console script and wait for it."""
    ended = subprocess.run(
        [LOOKALIKE, *map(str, words)], capture_output=True, text=True, timeout=300, cwd=cwd,
        env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr)


SMALL = ("--backbone", "scratch", "--weights", "random", "--image-size", "32")
"""A network that embeds a photo in a millisecond."""
