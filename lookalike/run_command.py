"""Run a command for a Python program, in a child process that shows its progress here.

A command that ended with an error or was interrupted leaves threads that wait for Ray, and Ray ends
a process that shuts it down meanwhile. In a child process an interrupt stops all of a command at
once, no environment variable, signal handler or descriptor of this process changes, and a command
can be called on any thread, in a notebook, and beside a Ray of this process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from lookalike.package_names import package_root
from lookalike.result import Result

_START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "root, descriptor = sys.argv[1:]; root in sys.path or sys.path.insert(0, root); "
    "from lookalike.child_process import main; main(int(descriptor))"
)


def run_command(verb: str, arguments: Mapping[str, Any]) -> Result:
    """Run a verb with the arguments of its function, and return its result.

    Raises LookalikeError as the command line reports it. A finished command whose exit code is not
    0, for instance below a bound, raises the error of this code; its `result` is the result.
    """
    from lookalike.arguments import make_settings
    from lookalike.input_files import written_inputs
    from lookalike.model_transfer import extract_model, pickle_model

    arguments, model = extract_model(arguments)
    with written_inputs(verb, arguments) as paths:
        settings = _use_connected_ray(make_settings(verb, paths))
        event = _run_child(verb, dataclasses.asdict(settings), pickle_model(model))
    if "error" in event:
        raise _make_error(event)
    outcome = event["result"]
    result = Result(verb, outcome["values"], tuple(outcome["lines"]), outcome["exit_code"])
    if result.exit_code:
        raise _unmet(result)
    return result


def _use_connected_ray(settings: Any) -> Any:
    """Return settings with the address of the Ray that this process is connected to, if any.

    An address that the options or $RAY_ADDRESS specify takes precedence.
    """
    ray = sys.modules.get("ray")
    if ray is None or getattr(settings, "ray_address", "") is not None:
        return settings
    if os.environ.get("RAY_ADDRESS") or not ray.is_initialized():
        return settings
    address: str = ray.get_runtime_context().gcs_address
    return dataclasses.replace(settings, ray_address=address)


def _run_child(verb: str, values: dict[str, Any], model: bytes) -> dict[str, Any]:
    """Run a verb in a child process and return its last event: the result or the error.

    `model` is a pickled model that the verb uses, or empty.
    """
    from jobs.runtime.progress_bars import shows_bars

    request = {"verb": verb, "settings": values, "bars": shows_bars(), "model_size": len(model)}
    read_end, write_end = os.pipe()
    try:
        # -P: modules of the current folder are not imported; a session of its own: Ctrl-C reaches
        # this process alone, which passes it on
        process = subprocess.Popen(  # noqa: S603 - a fixed program
            [sys.executable, "-P", "-c", _START, package_root(), str(write_end)],
            stdin=subprocess.PIPE, pass_fds=[write_end], start_new_session=True,
        )  # fmt: skip
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    assert process.stdin is not None
    try:
        with os.fdopen(read_end, encoding="utf-8", errors="surrogateescape") as events:
            with suppress(BrokenPipeError):  # it ended at once, which is reported below
                process.stdin.write(json.dumps(request).encode() + b"\n" + model)
                process.stdin.flush()
            last = _show_events(events)
        process.wait()
    except BaseException:  # a KeyboardInterrupt
        _interrupt(process)
        raise
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
    if last is None:
        return {
            "error": "LookalikeError", "exit_code": 1, "message":
            f"the process of the command ended with {process.returncode} and no message; finished "
            "work is kept, call it again to continue",
        }  # fmt: skip
    return last


def _show_events(events: Iterable[str]) -> dict[str, Any] | None:
    """Show messages and progress until the outcome of the command arrives; return that, or None."""
    from jobs.runtime.progress import print_message
    from jobs.runtime.progress_bars import RelayedBars

    bars = RelayedBars()
    try:
        for line in events:
            event: dict[str, Any] = json.loads(line)
            if "message" in event and "error" not in event:
                print_message(event["message"])
            elif "bar" in event:
                bars.draw(event)
            else:
                return event
    finally:
        bars.close()
    return None


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command and wait until it has ended; a second interrupt kills it."""
    try:
        process.send_signal(signal.SIGINT)
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise


def _make_error(event: dict[str, Any]) -> Exception:
    """Return the exception that an error event describes."""
    from retrieval.core import errors

    kind = getattr(errors, event["error"], None)
    if isinstance(kind, type) and issubclass(kind, errors.LookalikeError):
        return kind(event["message"])
    error = errors.LookalikeError(event["message"])
    error.exit_code = event["exit_code"]
    error.add_note(event["traceback"])
    return error


def _unmet(result: Result) -> Exception:
    """Return the exception of a finished command whose exit code is not 0, with its result."""
    from retrieval.core import errors

    kinds = (errors.InputError, errors.BelowBound, errors.Damaged, errors.LookalikeError)
    kind = next((kind for kind in kinds if kind.exit_code == result.exit_code), kinds[-1])
    error = kind("; ".join(result.lines))
    error.exit_code, error.result = result.exit_code, result
    return error
