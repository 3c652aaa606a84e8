"""Pause the processes of a test node at a chosen storage operation.

Python imports this module at startup in the nodes of `tests/ray_nodes.py`, which have its folder on
their path. The file `PAUSE_FOLDER/NODE` holds a pattern of operations and paths; a process that
reaches a matching operation writes `PAUSE_FOLDER/NODE.paused` and pauses while the pattern exists.
"""

import os
import re
import time
from pathlib import Path

from retrieval.storage import folder


def pause(when, operation, path):
    """Pause before a matching operation until the pattern is removed."""
    pattern_file = Path(os.environ["PAUSE_FOLDER"], os.environ["NODE"])
    while when == "before" and pattern_file.exists():
        if not re.search(pattern_file.read_text(), f"{operation} {path}"):
            return
        pattern_file.with_suffix(".paused").write_text(path)
        time.sleep(0.05)


if "PAUSE_FOLDER" in os.environ:
    folder.fault_hook = pause
