"""Python imports this at its start where this folder is on its path: the nodes of `tests/nodes.py`.

It lets a test hold a process of one node just before it stores a certain file, at the seam that the
product has, and kill it there: `HELD/NODE` holds a pattern of paths, `HELD/NODE.here` says that one
is waited at.
"""

import os
import re
import time
from pathlib import Path

from retrieval.storage import folder

_PASS = {"read", "make folder"}


def held(when, operation, path):
    """Wait for as long as the pattern stands there."""
    asked = Path(os.environ["HELD"], os.environ["NODE"])
    while when == "before" and operation not in _PASS and asked.exists():
        if not re.search(asked.read_text(), path):
            return
        asked.with_suffix(".here").write_text(path)
        time.sleep(0.05)


if "HELD" in os.environ:
    folder.seam = held
