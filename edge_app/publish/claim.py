"""Who may use a spool's path: one process at a time, and only where nothing else lies.

The claim is a lock on the file `<path>.lock`, which the kernel takes back however its holder ends.
It covers what lies beside the spool too; SQLite's own lock guards the spool alone.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from edge_app.errors import EXIT_CONFIG, EXIT_UNAVAILABLE
from edge_app.publish.spool_file import is_spool
from edge_app.publish.spool_trouble import FileUnavailableError

_TWO_OF_US = (
    "stop that one first (`systemctl stop edge-app` if it is the service); a second appliance on "
    "this machine needs a device.id and a spool.path of its own"
)
_ELSEWHERE = "if it is a spool nevertheless, from elsewhere and damaged, move it away"


class TakenError(FileUnavailableError):
    """Another process has claimed the path."""

    exit_code = EXIT_UNAVAILABLE


class ForeignError(FileUnavailableError):
    """What lies at the path is no spool, and never was one."""

    exit_code = EXIT_CONFIG


class Claim:
    """The right to use the files at `path`. Not inherited by child processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def take(self) -> bool:
        """Claim the path, unless that is done; returns False where no lock can be had.

        That is no error: whoever goes on to open the spool learns why. Raises TakenError, or
        ForeignError.
        """
        if self.held:
            return True
        try:
            if fault := fault_of(self._path):
                raise ForeignError(fault, _ELSEWHERE)
            self._path.parent.mkdir(exist_ok=True)
            descriptor = _open(_lock_file(self._path))
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                return False  # a file system without locks
            raise TakenError(f"another edge-app{holder} uses {self._path}", _TWO_OF_US) from error
        self._descriptor = descriptor
        with suppress(OSError):  # a full disk; the number is for people, the lock needs none
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        return True

    def close(self) -> None:
        """Let others have the path. The file stays: who removes it may remove another's lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def fault_of(path: Path) -> str:
    """Return why there can be no spool at `path` because of what lies there; "" when there can.

    A file is known by its first bytes, or, if damage has hit those, by the lock file of an earlier
    claim. Raises OSError when that cannot be seen.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return ""
    if stat.S_ISDIR(found.st_mode):
        what = "a directory"
    elif not stat.S_ISREG(found.st_mode):
        what = "a device or a pipe"
    elif found.st_size == 0 or _lock_file(path).exists() or is_spool(path):
        return ""
    else:
        what = "a file of something else"
    return (
        f'spool.path: found "{path}": {what}; allowed: a path where nothing is yet, or a spool; '
        "empty: in memory only"
    )


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _open(file: Path) -> int:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError:  # another user's, or on a disk that takes no writes: still good for a lock
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    with suppress(OSError):
        os.fchmod(descriptor, 0o644)  # whatever the umask: made by root, it must serve the service
    return descriptor


def _holder(descriptor: int) -> str:
    """Return " (pid N)", if the lock's holder could write down who it is."""
    with suppress(OSError, ValueError):
        pid = int(os.pread(descriptor, 20, 0))
        if Path(f"/proc/{pid}").exists():
            return f" (pid {pid})"
    return ""
