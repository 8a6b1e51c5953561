"""Moves what waits in a spool to a disk and back, in a thread of its own.

In normal operation it writes no message, and reserves numbers now and then: only what was in memory
at two ticks in a row, and so was not acknowledged in between, goes to the disk. Whatever the disk
does, the spool goes on in memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edge_app.domain import Event
from edge_app.errors import EdgeAppError
from edge_app.publish.claim import Claim, ForeignError, TakenError
from edge_app.publish.spool import PAGE_ROWS, Spool
from edge_app.publish.spool_file import ROW_BYTES, Contents, SpoolFile, set_aside
from edge_app.publish.spool_trouble import FileDamagedError, FileUnavailableError

log = logging.getLogger(__name__)

# Numbers are reserved so many at a time: a small write every few minutes at 30 messages a second.
BLOCK = 10_000

_TICK_S = 0.4  # a message is 0.4 to 0.8 s old when it goes to the disk
_RETRY_S = 5.0  # between attempts at a disk that does not take writes
_BATCH_ROWS = 2_000  # bounds how long `append` may wait for the spool's lock: milliseconds
_CLOSE_S = 3.0


class Keeper:
    """Keeps a spool's messages in the file at `path`, at most `max_bytes` of them.

    Opens the file and settles where numbering goes on, so it is made before the first message. A
    file that cannot be used is no error: an event says so, and the spool goes on in memory. With a
    `claim` the file is used only while that is held, where it can be had. Raises TakenError or
    ForeignError when it is not ours to use.
    """

    def __init__(
        self,
        spool: Spool,
        path: Path,
        max_bytes: int,
        *,
        claim: Claim | None = None,
        tick_s: float = _TICK_S,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._spool = spool
        self._path = path
        self._max_bytes = max_bytes
        self._claim = claim
        self._tick_s, self._retry_s = tick_s, retry_s
        self._file: SpoolFile | None = None
        self._has_history = False  # whether this run's numbers go on from those of a file
        self._first_seq = 0  # of this run
        self._reserved = 0
        self._mark = 0  # the next number, as it was at the last tick
        self._is_degraded = False
        self._retry_at_s = 0.0
        self._stopping = threading.Event()
        self._start()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Bring everything to the disk, hand back the numbers not used, end the thread."""
        self._stopping.set()
        self._spool.work.set()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            log.warning("%s: the disk does not answer; leaving it", self._path)

    def _start(self) -> None:
        events: list[Event] = []
        contents: Contents | None = None
        trouble: EdgeAppError | None = None
        try:
            contents = self._open(events)
        except (TakenError, ForeignError):
            raise
        except EdgeAppError as error:
            trouble = error
        # Without a history: larger than any number used before, because no device sends a thousand
        # messages a second all its life.
        unused = time.time_ns() // 1_000_000
        self._first_seq = unused if contents is None or events else contents.reserved
        self._spool.start_at(self._first_seq)
        for event in events:
            self._spool.announce(event)
        if contents is not None:
            self._guarded(partial(self._adopt, contents))
        elif trouble is not None:
            self._degrade(trouble)

    # From here on everything runs in the keeper's thread, or before there is one.

    def _run(self) -> None:
        tick_at_s = time.monotonic() + self._tick_s
        while not self._stopping.is_set():
            self._spool.work.wait(max(0.0, tick_at_s - time.monotonic()))
            self._spool.work.clear()
            self._guarded(self._read_page)
            if time.monotonic() >= tick_at_s or self._spool.is_pressing():
                self._guarded(self._tick)
                tick_at_s = time.monotonic() + self._tick_s
        self._guarded(self._finish)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except FileUnavailableError as error:
            self._degrade(error)
        except FileDamagedError as error:
            self._replace(error)

    def _open(self, events: list[Event]) -> Contents:
        """Open the file; one that is no good is replaced by a new one, and an event added."""
        try:
            return self._load()
        except FileDamagedError as error:
            events.append(_set_aside_event(error, set_aside(self._path), lost=None))
            return self._load()

    def _load(self) -> Contents:
        if self._claim is not None:
            self._claim.take()
        file = SpoolFile(self._path)
        try:
            contents = file.contents()
            if self._first_seq and contents.reserved > max(1, self._first_seq):
                raise FileUnavailableError(
                    f"{self._path}: it holds numbers that follow ours; the next start can use it"
                )
        except EdgeAppError:
            file.close()
            raise
        self._file = file
        return contents

    def _adopt(self, contents: Contents) -> None:
        """Go on from what an opened file holds, and reserve numbers in it."""
        self._spool.rows_found(contents.rows, contents.bytes, contents.last_seq)
        settled = self._spool.oldest_in_memory()
        if not self._has_history:
            self._has_history = True
            unsettled = max(contents.settled, contents.last_seq + 1)
            if unsettled < self._first_seq:
                self._spool.announce(_gap_event(unsettled, self._first_seq - 1))
                # Until that event is settled itself, the next crash must tell the same.
                settled = unsettled
        self._reserve(settled)
        self._spool.is_kept = True

    def _tick(self) -> None:
        if time.monotonic() < self._retry_at_s:
            return
        if self._file is None:
            self._reopen()
        is_old = self._spool.oldest_in_memory() < self._mark
        self._mark = self._spool.next_seq()
        self._remove()
        if self._reserved - self._mark < BLOCK // 2:
            self._reserve(self._spool.oldest_in_memory())
        if is_old or self._spool.is_pressing():
            self._save()
        if self._is_degraded:
            self._reserve(self._spool.oldest_in_memory())  # proves that it can be written
            self._is_degraded = False
            self._spool.is_kept = True
            event = Event("spool_recovered", f"{self._path}: messages can be saved again")
            self._spool.announce(event)

    def _reopen(self) -> None:
        events: list[Event] = []
        contents = self._open(events)
        for event in events:
            self._spool.announce(event)
        self._adopt(contents)

    def _reserve(self, settled: int) -> None:
        reserved = self._spool.next_seq() + BLOCK
        self._opened().number(settled, reserved)
        self._reserved = reserved

    def _remove(self) -> None:
        if acked := self._spool.acked_rows():
            self._spool.rows_removed(acked, self._opened().remove(acked))

    def _save(self) -> None:
        while rows := self._spool.newest_rows(_BATCH_ROWS):
            size_bytes = sum(len(message.payload) + ROW_BYTES for _, message in rows)
            excess_bytes = self._spool.row_bytes() + size_bytes - self._max_bytes
            trimmed = self._opened().add(rows, excess_bytes)
            self._spool.rows_added(rows, size_bytes)
            if trimmed.rows:
                self._spool.rows_dropped(trimmed.rows, trimmed.bytes, trimmed.last_seq)
            self._read_page()  # replay goes on while much is saved
            if len(rows) < _BATCH_ROWS:
                break

    def _read_page(self) -> None:
        wanted = self._spool.page_wanted()
        if wanted is not None and self._file is not None:
            after, token = wanted
            self._spool.page_read(self._file.page(after, PAGE_ROWS), token)

    def _finish(self) -> None:
        try:
            if self._file is not None:
                self._save()
                self._remove()
                next_seq = self._spool.next_seq()
                self._file.number(next_seq, next_seq)
        finally:
            self._close_file()
            if left := len(self._spool.newest_rows(1_000_000)):
                log.warning("%s: %d messages could not be saved and are lost", self._path, left)

    def _opened(self) -> SpoolFile:
        if self._file is None:
            raise FileUnavailableError(f"{self._path}: not open")
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _degrade(self, error: EdgeAppError) -> None:
        self._spool.is_kept = False
        self._retry_at_s = time.monotonic() + self._retry_s
        if not self._is_degraded:
            self._is_degraded = True
            text = f"{error}; messages wait in memory, and numbers are not recorded"
            self._spool.announce(Event("spool_degraded", text))

    def _replace(self, error: EdgeAppError) -> None:
        """Give up a file that has become unusable; the next tick makes a new one."""
        self._close_file()
        self._spool.is_kept = False
        lost = self._spool.rows_lost()
        try:
            aside = set_aside(self._path)
        except FileUnavailableError as cannot:
            self._degrade(cannot)
        else:
            self._spool.announce(_set_aside_event(error, aside, lost))


def _set_aside_event(error: EdgeAppError, aside: Path, lost: int | None) -> Event:
    text = f"{error}; it was renamed to {aside.name}"
    return Event("spool_set_aside", text, {"file": str(aside), "lost": lost})


def _gap_event(first: int, last: int) -> Event:
    text = f"of the numbers {first} to {last}, those that have not arrived by now never will"
    return Event("spool_gap", text, {"first": first, "last": last})
