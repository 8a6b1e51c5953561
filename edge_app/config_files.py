"""What is wrong with the files that a configuration names: each fault with its key."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from edge_app.files import why_not
from edge_app.validate import shown

MAX_BYTES = 16_000_000  # of labels, keys or certificates: a device would never end


def file_faults(files: Mapping[str, str]) -> Iterator[str]:
    """Yield which of `files` (paths by their keys; an empty one is none) cannot be read."""
    for key, file in files.items():
        if file and (reason := _unreadable(Path(file))):
            yield f"{key}: found {shown(file)}: {reason}; allowed: a readable file, or empty"


def _unreadable(path: Path) -> str:
    try:
        found = path.stat()
    except OSError as error:
        return why_not(error)
    if stat.S_ISDIR(found.st_mode):
        return "a directory"
    if not stat.S_ISREG(found.st_mode):
        return "a device or a pipe"
    if found.st_size > MAX_BYTES:
        return f"{found.st_size} bytes, more than {MAX_BYTES}"
    return "" if os.access(path, os.R_OK) else "not readable by this user"
