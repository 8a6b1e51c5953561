"""Log records into the systemd journal, with fields to search by.

    journalctl -u edge-app EDGE_EVENT=fallback
    journalctl -u edge-app EDGE_CAMERA=main -p warning

The library is systemd-python, the distribution's python3-systemd. Without it, lines go to stderr
with their priority in front (sd-daemon(3)), which the journal takes off again.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from importlib import import_module

log = logging.getLogger(__name__)

# A kind of event has one MESSAGE_ID for ever: a name-based UUID in this namespace.
_NAMESPACE = uuid.UUID("5f0f4e0c-63a5-4b6b-9c55-0b8f2f2f6c1e")
_PRIORITIES = (  # of syslog(3)
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG = 7

Send = Callable[..., None]


def is_journal(environ: Mapping[str, str], descriptor: int) -> bool:
    """Whether what is written to `descriptor` goes to the journal, as JOURNAL_STREAM says."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:  # closed
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def log_to_journal(level: int) -> bool:
    """Send what is logged to the journal; do nothing and return False when stderr is not it."""
    try:
        descriptor = sys.stderr.fileno()
    except OSError:  # no file: what captures output, such as a test, has put its own there
        return False
    if not is_journal(os.environ, descriptor):
        return False
    try:
        # By name: in a checkout, the folder systemd/ would be taken for the library.
        send: Send = import_module("systemd.journal").send
    except ImportError as error:
        plain = logging.StreamHandler(sys.stderr)
        plain.setFormatter(PriorityFormatter("%(name)s: %(message)s"))
        logging.basicConfig(level=level, handlers=[plain])
        log.warning("the journal gets no fields: %s; hint: apt install python3-systemd", error)
    else:
        logging.basicConfig(level=level, handlers=[JournalHandler(send)])
    return True


def message_id(kind: str) -> str:
    """Return the MESSAGE_ID of an event's kind, as 32 hexadecimal digits."""
    return uuid.uuid5(_NAMESPACE, kind).hex


def fields(record: logging.LogRecord) -> dict[str, str | int]:
    """Return a record's fields beside MESSAGE.

    What was logged with `extra={"edge_NAME": value}` becomes EDGE_NAME; see `domain.Event.fields`.
    """
    found: dict[str, str | int] = {
        "PRIORITY": priority(record.levelno),
        "SYSLOG_IDENTIFIER": "edge-app",
        "LOGGER": record.name,
        "THREAD_NAME": record.threadName or "",
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName or "",
    }
    for name, value in vars(record).items():
        if name.startswith("edge_") and value not in (None, ""):
            found[name.upper()] = str(value)
    if "EDGE_EVENT" in found:
        found["MESSAGE_ID"] = message_id(str(found["EDGE_EVENT"]))
    return found


def priority(level: int) -> int:
    """Return syslog's number for a level of `logging`."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


class JournalHandler(logging.Handler):
    """Hands each record to `send`, which is `systemd.journal.send`. The journal adds the time."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(self.format(record), **fields(record))
        except Exception:  # noqa: BLE001 - logging's rule: a handler reports, and never raises
            self.handleError(record)


class PriorityFormatter(logging.Formatter):
    """Every line with its priority in front, a traceback's too."""

    def format(self, record: logging.LogRecord) -> str:
        front = f"<{priority(record.levelno)}>"
        return "\n".join(front + line for line in super().format(record).splitlines())
