"""Messages that wait for the broker: in order, numbered, bounded.

All of this is memory, and no call waits for anything. The newest messages are here; older ones may
have been moved to a disk by a `keeper.Keeper`, of which this holds no more than the next page.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from edge_app.domain import Event, Message
from edge_app.publish.wire import with_seq
from edge_app.stats import SpoolState

log = logging.getLogger(__name__)

PAGE_ROWS = 512  # read from the disk at a time; a quarter of a megabyte

_OVERHEAD_BYTES = 400  # of one waiting message in CPython: record, bytes header, dict slot
_DELIVERED = -1

Row = tuple[int, Message]


class Spool:
    """A numbered queue with a cursor: what lies before the cursor is sent but not acknowledged.

    `append` may be called from any thread; `take`, `ack` and `rewind` belong to the network thread,
    what follows `state` to the keeper's. When the queue would outgrow `max_bytes` of memory the
    oldest message in it goes, and is counted. `as_message` encodes events about the spool, which go
    the way of all messages.
    """

    def __init__(
        self,
        max_bytes: int,
        as_message: Callable[[Event], Message] | None = None,
        first_seq: int = 1,
    ) -> None:
        self.work = threading.Event()  # set when the keeper should not wait for its next tick
        self.on_ready: Callable[[], None] = lambda: None  # called when `take` has more to give
        self.is_kept = False  # whether a keeper can bring what waits to a disk; it says so
        self._lock = threading.Lock()
        self._as_message = as_message
        self._waiting: OrderedDict[int, Message] = OrderedDict()  # a dict is slow at its front
        self._max_bytes = max_bytes
        self._bytes = 0
        self._dropped = 0
        self._overflowing = False
        self._overflow_seq = _DELIVERED  # of the event that says so
        self._next_seq = first_seq
        self._cursor = first_seq
        # What is on the disk: all of it older than what is in `_waiting`.
        self._rows = 0
        self._row_bytes = 0
        self._last_row = 0
        self._page: deque[Row] = deque()  # read from the disk, not taken yet
        self._page_end = 0  # the next page begins after this number
        self._rewinds = 0  # a page asked for before the last one is of no use after it
        self._sent_rows: set[int] = set()
        self._acked_rows: set[int] = set()

    def append(self, message: Message) -> int:
        """Number the message and keep it until `ack`. Returns its number."""
        with self._lock:
            return self._append(message)

    def _append(self, message: Message) -> int:
        seq = self._next_seq
        self._next_seq += 1
        numbered = replace(message, payload=with_seq(message.payload, seq))
        self._waiting[seq] = numbered
        self._bytes += len(numbered.payload) + _OVERHEAD_BYTES
        while self._bytes > self._max_bytes and len(self._waiting) > 1:
            oldest = next(iter(self._waiting))
            self._forget(oldest)
            self._cursor = max(self._cursor, oldest + 1)
            self._count_dropped(1, oldest, oldest)
        if self._is_pressing():
            self.work.set()
        return seq

    def take(self) -> Row | None:
        """Return the oldest message not yet taken, with its number, and move the cursor past it.

        None also while older messages are still to be read from the disk: `on_ready` follows.
        """
        with self._lock:
            if self._page:
                seq, message = self._page.popleft()
                self._sent_rows.add(seq)
                if self._wants_page():
                    self.work.set()
                return seq, message
            if self._page_end < self._last_row:
                self.work.set()
                return None
            while self._cursor < self._next_seq:
                seq, self._cursor = self._cursor, self._cursor + 1
                if seq in self._waiting:  # not if it was acknowledged before an older one
                    return seq, self._waiting[seq]
            return None

    def ack(self, seq: int) -> None:
        """Forget message `seq`: the broker has it."""
        with self._lock:
            if seq in self._sent_rows:
                self._sent_rows.remove(seq)
                self._acked_rows.add(seq)
            else:
                self._forget(seq)
            if seq == self._overflow_seq:
                self._overflow_seq = _DELIVERED
            if self._overflowing and self._bytes + self._row_bytes < self._max_bytes / 2:
                self._overflowing = False

    def refuse(self, seq: int) -> None:
        """Give message `seq` up, and count it: the broker will never take it."""
        self.ack(seq)
        with self._lock:
            self._dropped += 1

    def _forget(self, seq: int) -> None:
        message = self._waiting.pop(seq, None)
        if message is not None:
            self._bytes -= len(message.payload) + _OVERHEAD_BYTES

    def rewind(self) -> None:
        """Move the cursor back to the oldest message kept: none in flight will be acknowledged."""
        with self._lock:
            self._rewinds += 1
            self._page.clear()
            self._sent_rows.clear()
            self._page_end = 0 if self._rows > len(self._acked_rows) else self._last_row
            self._cursor = next(iter(self._waiting), self._next_seq)
            self.work.set()

    def state(self) -> SpoolState:
        """Count what waits."""
        with self._lock:
            queued = self._rows - len(self._acked_rows) + len(self._waiting)
            return SpoolState(queued, self._row_bytes + self._bytes, self._dropped)

    def announce(self, event: Event) -> None:
        """Log the event, and append it as a message."""
        log.warning("%s", event.message, extra=event.fields())
        with self._lock:
            self._announce(event)

    def _announce(self, event: Event) -> None:
        if self._as_message is not None:
            self._append(self._as_message(event))

    def _count_dropped(self, count: int, first_seq: int, last_seq: int) -> None:
        self._dropped += count
        is_new = not self._overflowing
        if not is_new and not first_seq <= self._overflow_seq <= last_seq:
            return
        # An episode has one event; another takes its place if it had to go itself.
        self._overflowing = True
        self._overflow_seq = self._next_seq
        text = "the spool is full: the oldest messages are given up"
        details = {"last": last_seq, "dropped": self._dropped}
        event = Event("spool_overflow", text, details)
        if is_new:
            log.warning("%s from here on", text, extra=event.fields())
        self._announce(event)

    # What follows is for the keeper.

    def start_at(self, next_seq: int) -> None:
        """Number messages from here on; before the first message only."""
        with self._lock:
            self._next_seq = self._cursor = next_seq

    def is_pressing(self) -> bool:
        """Say whether so much is in memory that it should go to the disk at once."""
        with self._lock:
            return self._is_pressing()

    def _is_pressing(self) -> bool:
        return self._bytes > self._max_bytes // 8

    def row_bytes(self) -> int:
        with self._lock:
            return self._row_bytes

    def next_seq(self) -> int:
        with self._lock:
            return self._next_seq

    def oldest_in_memory(self) -> int:
        """Return the oldest number that is in memory only, or would be next."""
        with self._lock:
            return next(iter(self._waiting), self._next_seq)

    def newest_rows(self, limit: int) -> list[Row]:
        """Return the oldest `limit` of the messages that are in memory only."""
        with self._lock:
            return list(islice(self._waiting.items(), limit))

    def rows_found(self, rows: int, size_bytes: int, last_seq: int) -> None:
        """Take note of what a disk holds from before."""
        with self._lock:
            self._rows, self._row_bytes, self._last_row = rows, size_bytes, last_seq
            self._page_end = 0

    def rows_added(self, added: list[Row], size_bytes: int) -> None:
        """Hand the messages over to the disk, which has them now."""
        with self._lock:
            all_paged = self._page_end >= self._last_row
            for seq, _ in added:
                if seq not in self._waiting:  # acknowledged, or dropped, while it was written
                    self._acked_rows.add(seq)
                elif seq < self._cursor:
                    self._sent_rows.add(seq)
                self._forget(seq)
            self._rows += len(added)
            self._row_bytes += size_bytes
            self._last_row = added[-1][0]
            if all_paged:
                self._page_end = min(self._cursor - 1, self._last_row)
            self._cursor = max(self._cursor, self._last_row + 1)

    def rows_dropped(self, count: int, size_bytes: int, last_seq: int) -> None:
        """Count what went from the disk for its bound: the oldest, up to `last_seq`."""
        with self._lock:
            self._rows -= count
            self._row_bytes -= size_bytes
            self._page_end = max(self._page_end, last_seq)
            self._page = deque(row for row in self._page if row[0] > last_seq)
            self._sent_rows = {seq for seq in self._sent_rows if seq > last_seq}
            acked = {seq for seq in self._acked_rows if seq <= last_seq}
            self._acked_rows -= acked
            if count > len(acked):
                self._count_dropped(count - len(acked), 0, last_seq)

    def acked_rows(self) -> list[int]:
        """Return which rows may go from the disk."""
        with self._lock:
            return sorted(self._acked_rows)

    def rows_removed(self, seqs: list[int], size_bytes: int) -> None:
        with self._lock:
            self._acked_rows.difference_update(seqs)
            self._rows -= len(seqs)
            self._row_bytes -= size_bytes

    def rows_lost(self) -> int:
        """Forget the disk; returns how many messages are lost with it."""
        with self._lock:
            lost = self._rows - len(self._acked_rows)
            self._rows = self._row_bytes = 0
            self._page.clear()
            self._sent_rows.clear()
            self._acked_rows.clear()
            self._page_end = self._last_row
            self._dropped += lost
            return lost

    def page_wanted(self) -> tuple[int, int] | None:
        """Return after which number the next page begins, and a token for `page_read`."""
        with self._lock:
            return (self._page_end, self._rewinds) if self._wants_page() else None

    def _wants_page(self) -> bool:
        return self._page_end < self._last_row and len(self._page) <= PAGE_ROWS // 2

    def page_read(self, page: list[Row], token: int) -> None:
        """Offer what was read to `take`; empty when no row has a number above the one asked for."""
        with self._lock:
            if token != self._rewinds:
                return
            # Now, not in `take`: acknowledged rows are forgotten once they are off the disk.
            gone = self._acked_rows | self._sent_rows
            self._page.extend(row for row in page if row[0] not in gone)
            self._page_end = page[-1][0] if page else self._last_row
        self.on_ready()
