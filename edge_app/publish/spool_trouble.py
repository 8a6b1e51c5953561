"""What can be wrong with the spool's file, and how SQLite's words for it are to be taken."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_app.errors import EdgeAppError

# What SQLite says of a file that is not a database, or not (any more) ours.
_DAMAGED = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_MISMATCH,
)
# What it says, among other things, when files or their folder cannot be written.
_NO_ACCESS = (
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
)


class FileUnavailableError(EdgeAppError):
    """The file cannot be opened, read or written now; it may work later."""


class FileDamagedError(EdgeAppError):
    """The file is not a spool, or is broken: it will not work later either."""


@contextmanager
def translated(path: Path, unreadable: int = sqlite3.SQLITE_CORRUPT) -> Iterator[None]:
    """Turn what SQLite and the system raise about the file into the two errors above.

    `unreadable`: which of SQLite's errors means damage, besides the usual ones.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        kind = FileDamagedError if code in (*_DAMAGED, unreadable) else FileUnavailableError
        raise kind(f"{path}: {_why(path, code) or error}") from error
    except OSError as error:
        raise FileUnavailableError(f"{path}: {error.strerror}") from error


def _why(path: Path, code: int) -> str:
    """Return what SQLite does not tell: it calls an I/O error what is no failing disk."""
    if code == sqlite3.SQLITE_BUSY:
        return "locked by another program"
    if code not in _NO_ACCESS:
        return ""
    with suppress(OSError):
        if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
            return "its file system is read-only"
    for place in (path.parent, path, Path(f"{path}-wal")):
        # Not the real user but the effective one is who opens files.
        if os.access(place, os.F_OK) and not os.access(place, os.W_OK, effective_ids=True):
            return f"user {os.geteuid()} may not write to {place}"
    return ""
