"""What every test gets: nothing it starts may outlive it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from edge_app import catalog
from tests.brokers import Mosquitto, mosquitto_running

_PATIENCE_S = 5.0

# On a busy machine an example may take its time: that says nothing about us.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread or a child process behind."""
    threads, children = set(threading.enumerate()), child_processes()
    yield
    deadline_s = time.monotonic() + _PATIENCE_S
    left_threads = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in left_threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    left = [thread.name for thread in left_threads if thread.is_alive()]
    left += [f"process {pid}: {command}" for pid, command in child_processes() - children]
    if left:
        pytest.fail(f"the test left behind: {', '.join(left)}")


def child_processes() -> set[tuple[int, str]]:
    """Return the id and command line of every child of this process, zombies included."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            for pid in (task / "children").read_text().split():
                found.add((int(pid), _command_line(pid)))
        except OSError:  # that thread has just ended
            continue
    return found


def _command_line(pid: str) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "(ended)"
    return line.replace(b"\0", b" ").decode(errors="replace").strip() or "(not waited for)"


@pytest.fixture(scope="session")
def default_model() -> catalog.ModelFiles:
    """Return the model that ships with the package."""
    return catalog.resolve("mobilenet_v2_1.0_224")


@pytest.fixture(scope="session")
def sample_photos() -> list[Path]:
    """Return the photos that ship with the package."""
    return sorted((catalog.shipped_dir() / "samples").glob("*.jpg"))


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """Run a real broker that lets everybody in."""
    folder = tmp_path / "broker"
    folder.mkdir()
    with mosquitto_running(folder) as broker:
        yield broker
