"""Entry point of the command line: the script `lookalike`, and `python -m lookalike`.

It opens closed standard streams and cleans the search path (`retrieval/entry.py`) before the
command line is imported.
"""

from __future__ import annotations

import os
import sys

from retrieval.entry import import_own_packages, without_current_folder


def open_descriptors() -> None:
    """Open closed standard streams on the null device, so that no file gets their descriptors."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)


def main() -> None:
    """Run the command line; never returns, since `jobs.cli.main` exits."""
    open_descriptors()
    import_own_packages()
    if path := os.environ.get("PYTHONPATH"):  # inherited by the processes started here
        os.environ["PYTHONPATH"] = os.pathsep.join(without_current_folder(path.split(os.pathsep)))
    from jobs.cli import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
