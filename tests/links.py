"""A network for the nodes of `tests/nodes.py`, whose links can be cut.

A node's processes have a network of their own, which ends with them, and a link to a bridge, which
is cut and healed from outside. It takes root, and nothing outside these links is touched.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from contextlib import contextmanager, suppress

import pytest

_INSIDE = """
mount --make-rprivate / && mount --bind /dev/null /etc/resolv.conf
ip link set lo up
while ! ip link set {inner} up 2>/dev/null; do sleep 0.05; done
ip address add {address}/24 dev {inner}
exec {command}
"""
"""What a node does before it starts. Nobody is asked there for names: 10 s each, in vain."""


class Links:
    """The bridge and the links of one cluster: 10.77.X.NUMBER, of which 1 is the head, outside."""

    def __init__(self):
        self._mark = os.getpid() % 250
        self.bridge = f"lab{self._mark}"

    def address(self, number):
        """Give a node's address."""
        return f"10.77.{self._mark}.{number}"

    def wrapped(self, number, words):
        """Give the command that starts a node in a network of its own."""
        inside = _INSIDE.format(
            inner=f"lai{number}", address=self.address(number), command=shlex.join(words)
        )
        return ["unshare", "--net", "--mount", "sh", "-euc", inside]

    def connect(self, number, process):
        """Give the node's network, once it is there, its link."""
        outer = self._outer(number)
        while os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            assert process.poll() is None, "no network of its own"
        inner = ["peer", "name", f"lai{number}", "netns", str(process.pid)]
        _ip("link", "add", outer, "type", "veth", *inner)
        _ip("link", "set", outer, "master", self.bridge, "up")

    def cut(self, number):
        """Cut the link: nothing passes, and nobody is told."""
        _ip("link", "set", self._outer(number), "down")

    def heal(self, number):
        """Let everything pass again, unless the node has given itself up meanwhile."""
        with suppress(subprocess.CalledProcessError):
            _ip("link", "set", self._outer(number), "up")

    def _outer(self, number):
        return f"lao{self._mark}-{number}"


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def links():
    """Give a bridge for as long as it is needed; skips where none may be made."""
    made = Links()
    try:
        _ip("link", "add", made.bridge, "type", "bridge")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network may be made here: it takes root and iproute2")
    try:
        _ip("address", "add", f"{made.address(1)}/24", "dev", made.bridge)
        _ip("link", "set", made.bridge, "up")
        yield made
    finally:
        _ip("link", "delete", made.bridge)
