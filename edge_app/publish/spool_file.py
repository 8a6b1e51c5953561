"""The spool's file: SQLite, one transaction a batch, each on the disk before the call returns.

Knows nothing of threads, time or policy. docs/spool.md says what is promised on top of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edge_app.domain import Delivery, Message
from edge_app.errors import EdgeAppError
from edge_app.files import sync_folder
from edge_app.publish.spool_trouble import FileDamagedError, FileUnavailableError, translated

ROW_BYTES = 64  # what a row takes besides its payload: topic, number, lengths, its share of a page

_APPLICATION_ID = 0x65646765  # "edge" in SQLite's header: whose file it is
_VERSION = 1
_MAGIC = b"SQLite format 3\0"
_SCHEMA = """
CREATE TABLE message(
    seq INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    retain INTEGER NOT NULL,
    expiry_s INTEGER
) STRICT;
CREATE TABLE number(
    settled INTEGER NOT NULL,
    reserved INTEGER NOT NULL
) STRICT;
INSERT INTO number VALUES (1, 1);
"""
Row = tuple[int, Message]  # seq, and the message as it was numbered


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds.

    Numbers below `settled` will not come any more unless they are among the rows; those from
    `reserved` on were never given out. A clean end leaves both the same.
    """

    settled: int
    reserved: int
    rows: int
    bytes: int
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The oldest rows, given up for the bound: how many, their bytes, the last one's number."""

    rows: int = 0
    bytes: int = 0
    last_seq: int = 0


class SpoolFile:
    """An open file, ours alone: a second process that opens it finds it locked.

    Every method raises FileUnavailableError or FileDamagedError, and has then changed nothing.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it."""
        with translated(path):
            _make_folder(path.parent)
            is_new = not path.exists()
            # One thread at a time uses it, but not the one that opens it.
            self._db = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
        self._path = path
        try:
            with translated(path):
                self._prepare()
                if is_new:
                    sync_folder(path.parent)
        except EdgeAppError:
            self.close()
            raise

    def _prepare(self) -> None:
        # Exclusive first: the write-ahead log then needs no memory-mapped file beside it, which a
        # full disk would turn into SIGBUS.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        application_id = self._pragma("application_id")
        tables = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if (application_id, self._pragma("user_version")) != (_APPLICATION_ID, _VERSION):
            if application_id or tables:
                raise FileDamagedError(f"{self._path}: an SQLite file of another program")
            self._db.executescript(
                f"BEGIN; PRAGMA application_id = {_APPLICATION_ID};"
                f"PRAGMA user_version = {_VERSION}; {_SCHEMA} COMMIT;"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def contents(self) -> Contents:
        """Count what is there; reads the whole file once, and so notices most damage."""
        with translated(self._path):
            numbers = self._db.execute("SELECT settled, reserved FROM number").fetchall()
            if len(numbers) != 1 or not 1 <= numbers[0][0] <= numbers[0][1]:
                raise FileDamagedError(f"{self._path}: it does not say which numbers were used")
            rows, size, first, last = self._db.execute(
                "SELECT count(*), sum(length(payload)), min(seq), max(seq) FROM message"
            ).fetchone()
        settled, reserved = numbers[0]
        if rows and not 0 < first <= last < reserved:
            raise FileDamagedError(f"{self._path}: it holds numbers that were never given out")
        return Contents(
            settled, reserved, rows, (size or 0) + ROW_BYTES * rows, first or 0, last or 0
        )

    def number(self, settled: int, reserved: int) -> None:
        """Record both bounds; see `Contents`."""
        with self._transaction():
            self._db.execute("UPDATE number SET settled = ?, reserved = ?", (settled, reserved))

    def add(self, rows: Sequence[Row], excess_bytes: int) -> Trimmed:
        """Add rows with numbers above all others; give up the oldest to free `excess_bytes`."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO message VALUES (?, ?, ?, ?, ?)",
                (
                    (seq, message.topic, message.payload, message.retain, message.expiry_s)
                    for seq, message in rows
                ),
            )
            self._db.execute("UPDATE number SET settled = ?", (rows[-1][0] + 1,))
            return self._trim(excess_bytes)

    def _trim(self, excess_bytes: int) -> Trimmed:
        trimmed = Trimmed()
        with closing(
            self._db.execute("SELECT seq, length(payload) FROM message ORDER BY seq")
        ) as oldest:
            while trimmed.bytes < excess_bytes and (row := oldest.fetchone()) is not None:
                trimmed = Trimmed(trimmed.rows + 1, trimmed.bytes + row[1] + ROW_BYTES, row[0])
        if trimmed.rows:
            self._db.execute("DELETE FROM message WHERE seq <= ?", (trimmed.last_seq,))
        return trimmed

    def remove(self, seqs: Sequence[int]) -> int:
        """Remove the rows with these numbers; returns how many bytes they took."""
        freed = 0
        with self._transaction():
            for seq in seqs:
                for (size,) in self._db.execute(
                    "DELETE FROM message WHERE seq = ? RETURNING length(payload)", (seq,)
                ):
                    freed += size + ROW_BYTES
        return freed

    def page(self, after: int, limit: int) -> list[Row]:
        """Return the first `limit` rows with numbers above `after`, in order.

        What cannot be read now is taken for damage: messages behind it would wait for ever.
        """
        with translated(self._path, unreadable=sqlite3.SQLITE_IOERR):
            found = self._db.execute(
                "SELECT seq, topic, payload, retain, expiry_s FROM message"
                " WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            ).fetchall()
        return [
            (seq, Message(topic, payload, Delivery.SPOOLED, bool(retain), expiry_s))
            for seq, topic, payload, retain, expiry_s in found
        ]

    def close(self) -> None:
        with suppress(sqlite3.Error):  # every change is on the disk already
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with translated(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                    self._db.execute("ROLLBACK")
                raise


def is_spool(path: Path) -> bool:
    """Say whether the file's first bytes are a spool's, whatever follows. Raises OSError."""
    with path.open("rb") as file:
        header = file.read(72)
    return header.startswith(_MAGIC) and header[68:] == _APPLICATION_ID.to_bytes(4, "big")


def set_aside(path: Path) -> Path:
    """Rename the file, its log with it, so that a person can look at it; one such is kept.

    Raises FileUnavailableError.
    """
    aside = path.with_name(path.name + ".aside")
    try:
        Path(f"{aside}-wal").unlink(missing_ok=True)
        path.replace(aside)
        with suppress(FileNotFoundError):
            Path(f"{path}-wal").replace(f"{aside}-wal")
        sync_folder(path.parent)
    except OSError as error:
        raise FileUnavailableError(f"{path}: cannot be renamed: {error.strerror}") from error
    return aside


def _make_folder(folder: Path) -> None:
    """Make this one folder; not those above it, for they may be on a disk that is not mounted."""
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        text = f"there is no folder {folder.parent} (a disk that is not mounted?)"
        raise FileUnavailableError(text) from error
