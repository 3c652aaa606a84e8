"""The `verify` command: check whether an output is finished and unaltered."""

from __future__ import annotations

from dataclasses import replace

from jobs.config.settings import VerifySettings
from jobs.runtime.result import Result
from retrieval.core.errors import Damaged, InputError
from retrieval.storage.local import open_folder
from retrieval.storage.verify import Verdict, verify


def start(settings: VerifySettings) -> Result:
    """Check every file of an output and return a summary.

    The exit code is 0 if it is finished, 3 if it is unfinished and 7 if it is damaged.
    """
    verdicts = [
        _with_audit(verdict, settings.measure_recall)
        for verdict in verify(open_folder(settings.path))
    ]
    states = {verdict.state for verdict in verdicts}
    code = 0
    if "damaged" in states:
        code = Damaged.exit_code
    elif "unfinished" in states:
        code = InputError.exit_code
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    lines = [_format_verdict(verdict) for verdict in verdicts] + [
        f"  {problem}" for problem in problems
    ]
    state = {0: "finished", 3: "unfinished", 7: "damaged"}[code]
    values = {
        "path": settings.path,
        "state": state,
        "files": sum(verdict.files for verdict in verdicts),
        "problems": problems,
        "outputs": {verdict.path: f"{verdict.state}: {verdict.progress}" for verdict in verdicts},
    }
    return Result(values, (*lines, f"{settings.path} is {state}"), code)


def _with_audit(verdict: Verdict, measure_recall: bool) -> Verdict:
    """Add the problems in the content of an index or of matches, which checksums do not show."""
    folder, problems = open_folder(verdict.path), []
    if verdict.kind == "index" and verdict.state == "finished":
        from retrieval.index.audit import audit_index, verify_recall_curve

        problems = audit_index(folder) + (verify_recall_curve(folder) if measure_recall else [])
    elif verdict.kind == "matches" and verdict.state != "damaged":
        from retrieval.search.check_matches import audit_matches

        problems = audit_matches(folder)
    if not problems:
        return verdict
    return replace(verdict, state="damaged", problems=tuple(problems))


def _format_verdict(verdict: Verdict) -> str:
    return f"{verdict.state:>10}  {verdict.kind:<8} {verdict.path}  {verdict.progress}"
