"""A network for the nodes of `tests/ray_nodes.py` whose links can be cut.

The processes of a node run in a network namespace of their own, connected to a bridge by a virtual
link that is taken down and up from outside. This requires root.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from contextlib import contextmanager, suppress

import pytest

_NODE_SCRIPT = """
mount --make-rprivate / && mount --bind /dev/null /etc/resolv.conf
ip link set lo up
while ! ip link set {inner_link} up 2>/dev/null; do sleep 0.05; done
ip address add {address}/24 dev {inner_link}
exec {command}
"""
"""Shell script that sets up the namespace of a node and starts its command.

Without resolv.conf, DNS lookups fail at once instead of after 10 s each.
"""


class NetworkLinks:
    """Bridge and links of one cluster; node NUMBER has address 10.77.X.NUMBER, the head has 1."""

    def __init__(self):
        self._suffix = os.getpid() % 250
        self.bridge = f"lab{self._suffix}"

    def address(self, number):
        """Return the address of a node."""
        return f"10.77.{self._suffix}.{number}"

    def in_namespace(self, number, arguments):
        """Return the command that starts a node in its own network namespace."""
        script = _NODE_SCRIPT.format(
            inner_link=f"lai{number}", address=self.address(number), command=shlex.join(arguments)
        )
        return ["unshare", "--net", "--mount", "sh", "-euc", script]

    def connect(self, number, process):
        """Connect the namespace of a started node to the bridge."""
        outer = self._outer_link(number)
        while os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            assert process.poll() is None, "the node ended before it had a network namespace"
        peer = ["peer", "name", f"lai{number}", "netns", str(process.pid)]
        _ip("link", "add", outer, "type", "veth", *peer)
        _ip("link", "set", outer, "master", self.bridge, "up")

    def cut(self, number):
        """Take the link down; neither side is notified."""
        _ip("link", "set", self._outer_link(number), "down")

    def heal(self, number):
        """Bring the link up again, if the node still exists."""
        with suppress(subprocess.CalledProcessError):
            _ip("link", "set", self._outer_link(number), "up")

    def _outer_link(self, number):
        return f"lao{self._suffix}-{number}"


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def bridged_network():
    """Yield a bridged network; skip the test where none can be created."""
    network = NetworkLinks()
    try:
        _ip("link", "add", network.bridge, "type", "bridge")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot create a network bridge: requires root and iproute2")
    try:
        _ip("address", "add", f"{network.address(1)}/24", "dev", network.bridge)
        _ip("link", "set", network.bridge, "up")
        yield network
    finally:
        _ip("link", "delete", network.bridge)
