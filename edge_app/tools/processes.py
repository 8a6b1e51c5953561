"""Servers of our own on loopback ports: the demo's, the bench's and the tests'."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from edge_app.errors import EdgeAppError

_START_S = 20.0
_STOP_S = 8.0


def free_port() -> int:
    """Return a loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], stderr: int | IO[bytes] = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that is gone when the block ends."""
    # A session of its own, so that Ctrl-C reaches only us and we end the parts in order.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once `port` accepts connections. Raises EdgeAppError when `process` ends before."""
    give_up_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < give_up_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)  # nothing to wait on: another process is about to listen
        else:
            return
    ended = process.returncode
    how = f"did not listen within {_START_S:.0f} s" if ended is None else f"ended with {ended}"
    raise EdgeAppError(f"{process.args!r} {how}", hint="run it by hand to see why")
