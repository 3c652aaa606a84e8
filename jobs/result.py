"""What a verb answers, for a person and for a program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
        return "\n".join(self.lines)
