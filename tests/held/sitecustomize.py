"""Python imports this at its start where this folder is on its path: the nodes of `tests/nodes.py`.

It lets a test hold the processes of one node just before they read or write a certain file, at the
seam that the product has, and kill them there: `HELD/NODE` holds a pattern of operations and paths,
`HELD/NODE.here` says that one is waited at.
"""

import os
import re
import time
from pathlib import Path

from retrieval.storage import folder


def held(when, operation, path):
    """Wait for as long as the pattern stands there."""
    asked = Path(os.environ["HELD"], os.environ["NODE"])
    while when == "before" and asked.exists():
        if not re.search(asked.read_text(), f"{operation} {path}"):
            return
        asked.with_suffix(".here").write_text(path)
        time.sleep(0.05)


if "HELD" in os.environ:
    folder.fault_hook = held
