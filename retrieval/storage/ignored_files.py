"""Recognition of files created by desktops, file systems and NAS devices, and of hidden files.

In an output such files are ignored: they are neither checked nor removed. In an input they are
skipped, as are all other hidden files, unless a list names them.
"""

from __future__ import annotations

import re

_SYSTEM_NAME = re.compile(
    r"\.DS_Store|\._.*|Icon\r|\.localized|\.AppleDouble|\.AppleDB|\.AppleDesktop|\.apdisk"
    r"|\.Spotlight-V100|\.fseventsd|\.TemporaryItems|\.DocumentRevisions-V100|__MACOSX"  # macOS
    r"|Thumbs\.db|ehthumbs(_vista)?\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information"
    r"|\.directory|\.Trash.*|\.~lock\..*#|lost\+found"  # Linux desktops, LibreOffice, ext4
    r"|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+|\.snapshots?"  # file systems over a network
    r"|@eaDir|#recycle|#snapshot"  # Synology, QNAP
    r"|\.ipynb_checkpoints",
    re.IGNORECASE | re.DOTALL,
)


def is_system_name(name: str) -> bool:
    """Return whether files or folders of this name are created by a desktop or a file system."""
    return _SYSTEM_NAME.fullmatch(name) is not None


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden: leading dot, or system name."""
    return (name.startswith(".") and name not in (".", "..")) or is_system_name(name)


def has_system_part(path: str) -> bool:
    """Return whether a '/'-separated path leads to or through a system file or folder."""
    return any(map(is_system_name, path.split("/")))


def hidden_part(path: str) -> str | None:
    """Return the first hidden part of a '/'-separated path, or None."""
    return next(filter(is_hidden, path.split("/")), None)
