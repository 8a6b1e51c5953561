from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_app.errors import EdgeAppError
from edge_app.tools import demo


def test_a_demo_that_saw_no_result_fails() -> None:
    with pytest.raises(EdgeAppError, match=r"no result in 0\.01 s") as caught:
        demo.run(seconds=0.01)
    assert caught.value.hint


def test_a_demo_that_is_ended_takes_its_parts_along() -> None:
    command = [sys.executable, "-m", "edge_app", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # a result: everything has started
        parts = _children(process.pid)
        process.send_signal(signal.SIGTERM)
    assert len(parts) == 2
    assert not [pid for pid in parts if Path(f"/proc/{pid}").exists()]


def _children(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]
