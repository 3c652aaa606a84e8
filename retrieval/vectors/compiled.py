"""Compile functions with numba, and keep the machine code on disk.

Numba takes seconds to compile a module, and half a second to import, so modules that use this one
are imported where they are first needed. The code is kept beside the module; where that folder is
not writable, in the user's cache folder, and otherwise in a folder for temporary files. Another
processor gets code of its own.

Functions run without the interpreter lock and without `fastmath`, so error bounds hold and sums
have the order that is written.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(signature: str) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function for the argument types of `signature`."""

    def compile_function(function: Function) -> Function:
        try:
            return _compile(function, signature, cache=True)
        except RuntimeError:  # numba found no writable folder
            return _compile_in_temporary_folder(function, signature)

    return compile_function


def compiled_part(function: Function) -> Function:
    """Compile a function as a part of the compiled functions that call it."""
    result: Function = numba.njit(nogil=True, error_model="numpy")(function)
    return result


def _compile(function: Function, signature: str, *, cache: bool) -> Function:
    result: Function = numba.njit(signature, nogil=True, cache=cache, error_model="numpy")(function)
    return result


def _compile_in_temporary_folder(function: Function, signature: str) -> Function:
    folder = private_temporary_folder()
    if folder is None:
        return _compile(function, signature, cache=False)
    previous, numba.config.CACHE_DIR = numba.config.CACHE_DIR, folder
    try:
        return _compile(function, signature, cache=True)
    except RuntimeError:
        return _compile(function, signature, cache=False)
    finally:
        numba.config.CACHE_DIR = previous


def private_temporary_folder() -> str | None:
    """Return a folder for temporary files that only this user can write to; None if there is none.

    Machine code of a folder that others may write to must not be run.
    """
    user = os.getuid()
    folder = os.path.join(tempfile.gettempdir(), f"lookalike-compiled-{user}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
    return folder if private and status.st_uid == user else None
