"""What systemd hears, on a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_app.service.notify import Notifier, from_environment


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Supervisor:
    """The receiving end of a notify socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def heard(self) -> list[list[str]]:
        """Return the lines of every datagram since the last call."""
        taken = []
        while True:
            try:
                taken.append(self._socket.recv(4096).decode().splitlines())
            except BlockingIOError:
                return taken

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notifier(supervisor: Supervisor, clock: Clock) -> Iterator[Notifier]:
    made = Notifier(str(supervisor.path), watchdog_s=20.0, clock_s=clock)
    yield made
    made.close()


def test_nothing_is_said_before_the_first_completed_step(
    notifier: Notifier, supervisor: Supervisor, clock: Clock
) -> None:
    notifier.status("opening")
    clock.now_s += 100
    notifier.progressed()
    assert supervisor.heard() == []
    notifier.completed(lambda: "cpu;\n first")
    assert supervisor.heard() == [["READY=1", "STATUS=cpu; first", "WATCHDOG=1"]]


def test_ready_is_said_once(notifier: Notifier, supervisor: Supervisor) -> None:
    for _ in range(3):
        notifier.completed(lambda: "cpu")
    assert len(supervisor.heard()) == 1


def test_the_watchdog_hears_of_progress_a_few_times_an_interval(
    notifier: Notifier, supervisor: Supervisor, clock: Clock
) -> None:
    notifier.completed(lambda: "")
    supervisor.heard()
    for _ in range(310):  # a good 10 s at 30 frames a second
        clock.now_s += 1 / 30
        notifier.completed(lambda: "")
    assert supervisor.heard() == [["WATCHDOG=1"]] * 2
    clock.now_s += 60  # no progress: nothing is sent by itself
    assert supervisor.heard() == []


def test_without_a_watchdog_none_is_petted(supervisor: Supervisor, clock: Clock) -> None:
    notifier = Notifier(str(supervisor.path), clock_s=clock)
    notifier.completed(lambda: "")
    supervisor.heard()
    clock.now_s += 1e6
    notifier.progressed()
    assert supervisor.heard() == []
    notifier.close()


def test_a_reload_is_told_with_its_time(notifier: Notifier, supervisor: Supervisor) -> None:
    notifier.reloading()
    notifier.reloaded("cpu")
    begin, end = supervisor.heard()
    assert begin[0] == "RELOADING=1"
    assert begin[1].removeprefix("MONOTONIC_USEC=").isdigit()
    assert end == ["READY=1", "STATUS=cpu"]


def test_nothing_follows_the_end(notifier: Notifier, supervisor: Supervisor) -> None:
    notifier.completed(lambda: "")
    notifier.stopping("bye")
    notifier.status("after the end")
    assert [lines[0] for lines in supervisor.heard()] == ["READY=1", "STOPPING=1"]


def test_ready_is_said_again_until_it_was_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "later"))
    notifier.completed(lambda: "")
    notifier.completed(lambda: "")
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1  # said once
    supervisor = Supervisor(tmp_path / "later")
    notifier.completed(lambda: "")
    assert supervisor.heard()[0][0] == "READY=1"
    notifier.close()
    supervisor.close()


def test_a_full_queue_does_not_block(supervisor: Supervisor) -> None:
    notifier = Notifier(str(supervisor.path))
    notifier.completed(lambda: "")
    for number in range(5000):  # far more than a socket's queue takes
        notifier.status(str(number))
    assert 1 < len(supervisor.heard()) < 5000
    notifier.status("again")
    assert supervisor.heard() == [["STATUS=again"]]
    notifier.close()


def test_an_abstract_socket() -> None:
    name = f"edge-app-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        notifier = from_environment({"NOTIFY_SOCKET": f"@{name}"})
        notifier.completed(lambda: "")
        assert listener.recv(100).startswith(b"READY=1")
        notifier.close()


@pytest.mark.parametrize("meant_for", ["", str(os.getpid())])
def test_the_environment_names_the_watchdog(supervisor: Supervisor, meant_for: str) -> None:
    notifier = from_environment(
        {
            "NOTIFY_SOCKET": str(supervisor.path),
            "WATCHDOG_USEC": "1",
            "WATCHDOG_PID": meant_for,
        }
    )
    notifier.completed(lambda: "")
    notifier.progressed()
    assert supervisor.heard()[1:] == [["WATCHDOG=1"]]
    notifier.close()


@pytest.mark.parametrize(
    "watchdog",
    [{"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {}],
    ids=["another process", "no number", "none"],
)
def test_a_watchdog_that_is_not_ours(supervisor: Supervisor, watchdog: dict[str, str]) -> None:
    notifier = from_environment({"NOTIFY_SOCKET": str(supervisor.path), **watchdog})
    notifier.completed(lambda: "")
    notifier.progressed()
    assert ["WATCHDOG=1"] not in supervisor.heard()
    notifier.close()


def test_nobody_to_tell() -> None:
    notifier = from_environment({})
    notifier.completed(lambda: pytest.fail("nobody asked for a status"))
    notifier.stopping("bye")


def test_a_socket_of_another_kind_is_said_and_left(caplog: pytest.LogCaptureFixture) -> None:
    notifier = from_environment({"NOTIFY_SOCKET": "vsock:2:1234"})
    notifier.completed(lambda: "")
    assert "vsock:2:1234" in caplog.text
