"""What the journal gets: from a real process whose stderr is said to lead there."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from edge_app.domain import Event
from edge_app.errors import CameraStalled
from edge_app.service.journal import (
    JournalHandler,
    PriorityFormatter,
    fields,
    is_journal,
    message_id,
    priority,
)

# Writes what it is asked to send to where $SENT says, as systemd-python would to the journal.
_STANDIN = """
import json, os
def send(message, **fields):
    with open(os.environ["SENT"], "a") as file:
        file.write(json.dumps({"MESSAGE": message, **fields}) + "\\n")
"""


def checked(folder: Path, *, to_journal: bool = True, library: bool = True) -> tuple[str, str]:
    """Run `config check` on a bad file; return what was sent, and what came on stderr."""
    config, sent = folder / "config.toml", folder / "sent"
    config.write_text('[camera.main]\nsource = "images:/x"\nfsp = 3\n')
    sent.touch()
    (folder / "systemd").mkdir()
    (folder / "systemd/__init__.py").touch()
    if library:
        (folder / "systemd/journal.py").write_text(_STANDIN)
    reading, writing = os.pipe()
    found = os.fstat(writing)
    stream = f"{found.st_dev}:{found.st_ino}" if to_journal else "1:2"
    with os.fdopen(reading) as stderr:
        subprocess.run(
            [sys.executable, "-m", "edge_app", "config", "check", "--config", str(config)],
            stderr=writing,
            check=False,
            env=os.environ
            | {"JOURNAL_STREAM": stream, "PYTHONPATH": str(folder), "SENT": str(sent)},
        )
        os.close(writing)
        return sent.read_text(), stderr.read()


def test_an_error_is_one_record_with_its_priority(tmp_path: Path) -> None:
    sent, err = checked(tmp_path)
    record = json.loads(sent)
    assert err == ""  # or the journal would have it twice
    assert "camera.main.fsp: unknown key (did you mean fps?)" in record["MESSAGE"]
    assert "hint: " in record["MESSAGE"]
    assert (record["PRIORITY"], record["SYSLOG_IDENTIFIER"]) == (3, "edge-app")


def test_without_the_library_lines_carry_their_priority(tmp_path: Path) -> None:
    sent, err = checked(tmp_path, library=False)
    lines = err.splitlines()
    assert sent == ""
    assert lines[0].startswith("<4>")
    assert "apt install python3-systemd" in lines[0]
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines[1:])


def test_a_terminal_is_not_the_journal(tmp_path: Path) -> None:
    sent, err = checked(tmp_path, to_journal=False)  # a service's shell hands JOURNAL_STREAM down
    assert sent == ""
    assert err.startswith("edge-app: ")


def record_of(level: int, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("edge_app.x", level, __file__, 7, "%s said", ("it",), None)
    record.__dict__.update(extra)
    return record


def test_an_event_is_found_by_its_fields() -> None:
    event = Event("fallback", "x", {"backend": "cpu", "retry_s": 1.5, "hint": "", "cause": None})
    found = fields(record_of(logging.WARNING, **event.fields()))
    assert found["PRIORITY"] == 4
    assert found["EDGE_EVENT"] == "fallback"
    assert found["EDGE_BACKEND"] == "cpu"
    assert found["EDGE_RETRY_S"] == "1.5"
    assert not found.keys() & {"EDGE_HINT", "EDGE_CAUSE"}
    assert uuid.UUID(str(found["MESSAGE_ID"])).hex == found["MESSAGE_ID"]


def test_a_kind_keeps_its_message_id() -> None:
    assert message_id("fallback") == "adad0397a90f5929a975af73de898e88"
    assert message_id("promoted") != message_id("fallback")


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (50, 2)],
)
def test_priorities_are_syslogs(level: int, number: int) -> None:
    assert priority(level) == number


def test_every_line_of_a_traceback_has_a_priority() -> None:
    try:
        json.loads("bug")
    except ValueError:
        record = record_of(logging.ERROR, exc_info=sys.exc_info())
    lines = PriorityFormatter("%(name)s: %(message)s").format(record).splitlines()
    assert lines[0] == "<3>edge_app.x: it said"
    assert all(line.startswith("<3>") for line in lines)
    assert len(lines) > 2


def test_a_journal_that_cannot_be_reached_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    def send(message: str, **_fields: object) -> None:
        raise OSError("no journal")

    JournalHandler(send).handle(record_of(logging.INFO))
    assert "no journal" in capsys.readouterr().err


def test_a_closed_stderr_leads_nowhere() -> None:
    descriptor = os.open("/dev/null", os.O_WRONLY)
    os.close(descriptor)
    assert not is_journal({"JOURNAL_STREAM": "0:0"}, descriptor)


def test_what_ends_the_appliance_is_found_by_event_and_camera() -> None:
    error = CameraStalled("camera porch: no frame for 6.3 s")
    error.camera = "porch"
    found = fields(record_of(logging.ERROR, edge_event=error.kind, edge_camera=error.camera))
    assert (found["EDGE_EVENT"], found["EDGE_CAMERA"]) == ("camera_stalled", "porch")
    assert found["MESSAGE_ID"] == message_id("camera_stalled")


def test_a_line_about_no_event_has_no_message_id() -> None:
    found = fields(record_of(logging.INFO, edge_event="", edge_camera=""))
    assert not any(name.startswith(("EDGE_", "MESSAGE_ID")) for name in found)
