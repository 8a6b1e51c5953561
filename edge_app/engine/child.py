"""Any engine in a child process, so that what kills it does not kill us.

Pictures and outputs pass through shared memory; one byte on a socket starts a run and one ends it.
Every wait has a bound. After any failure the child is of no further use: close it, start another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_app.domain import EngineInfo, Pixels, Tensor
from edge_app.engine.pace import Pace
from edge_app.engine.shared import FAILED, RUN, SLOTS, Exchange, Slot, read_info, size_bytes
from edge_app.errors import EngineError, ModelError

_SAID_BYTES = 4096  # of the last words; enough for a C++ abort's message and stack
_SAID_LINES = 6
_READ_BYTES = 65_536
_MAX_HANDSHAKE_BYTES = 1_000_000
_EXIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a child may take before it is given up.

    `start_s`: looking for a device and importing the runtime, at a low priority. `open_s`: a first
    USB open, which uploads firmware. `first_s`: the first run, which sends the program to the
    device; later runs may take `times_p99` of the device's own recent p99, but never less than
    `floor_s`: a busy machine is no broken device.
    """

    start_s: float = 60.0
    open_s: float = 30.0
    first_s: float = 10.0
    floor_s: float = 0.5
    times_p99: float = 8.0


class ChildFailed(EngineError):
    """The child died, hung or reported a failed run.

    `signal` is the name of the one that ended it, or empty; `said` its last lines of output.
    """

    def __init__(self, message: str, hint: str = "", *, signal: str = "", said: str = "") -> None:
        super().__init__(message, hint)
        self.signal = signal
        self.said = said


class ChildEngine:
    """An engine that runs in a process of its own. `pace`: how long its runs take.

    The thread that makes it must live as long as it does: Linux ties the child's life to it.
    """

    def __init__(
        self, factory: str, arguments: Mapping[str, Any], bounds: Bounds | None = None
    ) -> None:
        """Start the child and do not wait for it; `open` does.

        `factory` is "module:function" of what returns the engine, `arguments` are its keyword
        arguments, which must survive JSON.
        """
        self._bounds = bounds or Bounds()
        self.pace = Pace()
        self._at_work: deque[tuple[Slot, float]] = deque()  # and when each was sent
        self._ended_s = 0.0
        self._heard = b""  # of the records that the child sends
        self._output: deque[bytes] = deque()
        self._info: EngineInfo | None = None
        self._exchange: Exchange | None = None
        self._memory = os.memfd_create("edge-app", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._link, theirs = socket.socketpair()
        self._pipe, spoken = os.pipe()
        os.set_blocking(self._pipe, False)
        command = [sys.executable, "-P", "-m", "edge_app.engine.worker"]
        command += [str(theirs.fileno()), str(self._memory), str(os.getpid())]
        command += [factory, json.dumps(dict(arguments))]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=spoken,
                stderr=spoken,
                pass_fds=(theirs.fileno(), self._memory),
                process_group=0,  # Ctrl-C is for the appliance, which then ends its child
            )
        except OSError as error:
            self._close_descriptors()
            raise EngineError(f"cannot start a child process: {error.strerror}") from error
        finally:
            theirs.close()
            os.close(spoken)
        self._poll = select.poll()
        self._poll.register(self._link, select.POLLIN)
        self._poll.register(self._pipe, select.POLLIN)

    @property
    def ahead(self) -> int:
        """See `domain.PipelinedEngine`."""
        return SLOTS - 1

    @property
    def info(self) -> EngineInfo:
        """What the child runs. Raises EngineError before `open` has returned."""
        if self._info is None:
            raise EngineError("the child engine is not open")
        return self._info

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self) -> None:
        """Wait until the engine in the child is open.

        Raises what opening it raised there (ModelError, EngineError), or ChildFailed.
        """
        self._hear_record(time.monotonic() + self._bounds.start_s, "starting")
        answer = self._hear_record(time.monotonic() + self._bounds.open_s, "opening")
        if "error" in answer:
            kind = ModelError if answer["model"] else EngineError
            raise kind(answer["error"], answer["hint"])
        info = read_info(answer["info"])
        os.ftruncate(self._memory, size_bytes(info))
        # Sealed, so that nothing the child does can pull the memory from under our feet.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, seals)
        self._exchange = Exchange(self._memory, info)
        self._info = info

    def run(self, pixels: Pixels) -> list[Tensor]:
        """Infer on `pixels`; see `domain.Engine.run`. Raises ChildFailed when the child is lost."""
        self.start(pixels)
        return self.finish()

    def start(self, pixels: Pixels) -> None:
        """Send a picture to the child; see `domain.PipelinedEngine`. Raises as `run` does."""
        info, exchange = self.info, self._opened()
        if pixels.shape != info.input.shape[1:] or pixels.dtype != np.uint8:
            raise EngineError(
                f"{info.model} takes uint8 pixels of shape {info.input.shape[1:]}, "
                f"got {pixels.dtype} {pixels.shape}"
            )
        if len(self._at_work) == SLOTS:
            raise RuntimeError(f"{SLOTS} pictures are at work; finish one first")
        slot, start_s = exchange.next(), time.monotonic()
        slot.pixels[...] = pixels
        try:
            self._link.send(RUN)
        except OSError as error:
            self._give_up()
            raise self._lost("while it was idle") from error
        self._at_work.append((slot, start_s))

    def finish(self) -> list[Tensor]:
        """Wait for the outputs of the first picture at work. Raises as `run` does."""
        self._opened()
        slot, start_s = self._at_work.popleft()
        begin_s = max(start_s, self._ended_s)  # it had to wait for the one before it
        try:
            self._await_done(begin_s + self._bound_s())
        except ChildFailed:
            del slot
            self._give_up()
            raise
        self._ended_s = time.monotonic()
        self.pace.add((self._ended_s - begin_s) * 1e3)
        return [output.copy() for output in slot.outputs]

    def interrupt(self) -> None:
        """Kill the child: an `open` or `run` that waits for it raises. Called from any thread."""
        self._process.kill()

    def close(self) -> None:
        """Kill the child, if it lives, and free all there was between us. Bounded."""
        if self._link.fileno() < 0:
            return
        self._process.kill()
        self._reap()
        self._close_descriptors()
        self._give_up()

    def _close_descriptors(self) -> None:
        self._link.close()
        os.close(self._pipe)
        os.close(self._memory)

    def _opened(self) -> Exchange:
        if self._exchange is None:
            raise EngineError("the child engine is closed, or has failed")
        return self._exchange

    def _give_up(self) -> None:
        """Unmap the memory, so that no late answer is taken for another picture's."""
        self._at_work.clear()
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def _await_done(self, deadline_s: float) -> None:
        if self._hear(1, deadline_s, "a run") == FAILED:
            answer = self._hear_record(deadline_s, "a run")
            self._drain()
            raise ChildFailed(answer["error"], answer["hint"], said=self._last_words())

    def _bound_s(self) -> float:
        p99_ms = self.pace.p99_ms
        if p99_ms is None:
            return self._bounds.first_s
        return max(self._bounds.floor_s, self._bounds.times_p99 * p99_ms / 1e3)

    def _hear_record(self, deadline_s: float, doing: str) -> dict[str, Any]:
        while b"\n" not in self._heard and len(self._heard) < _MAX_HANDSHAKE_BYTES:
            self._heard += self._hear(_READ_BYTES, deadline_s, doing)
        line, _, self._heard = self._heard.partition(b"\n")
        record: dict[str, Any] = json.loads(line)
        return record

    def _hear(self, size: int, deadline_s: float, doing: str) -> bytes:
        """Wait for the child to say something, and keep its output from filling the pipe."""
        while (left_s := deadline_s - time.monotonic()) > 0:
            for descriptor, _ in self._poll.poll(left_s * 1e3):
                if descriptor == self._pipe:
                    self._drain()
                elif heard := self._receive(size):
                    return heard
                else:
                    raise self._lost(f"during {doing}")
        self._drain()
        raise ChildFailed(
            f"the engine's process hangs: {doing} is not done within its bound",
            said=self._last_words(),
        )

    def _receive(self, size: int) -> bytes:
        try:
            return self._link.recv(size)
        except ConnectionError:
            return b""

    def _lost(self, when: str) -> ChildFailed:
        code = self._reap()
        self._drain()
        name = signal.Signals(-code).name if code is not None and code < 0 else ""
        how = name or f"exit status {code}"
        said = self._last_words()
        last = f": {said.splitlines()[-1]}" if said else ""
        return ChildFailed(
            f"the engine's process ended {when} ({how}){last}", signal=name, said=said
        )

    def _reap(self) -> int | None:
        """Wait for the end of a child that is ending."""
        try:
            return self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:  # the kernel holds it; Popen reaps it later
            return None

    def _drain(self) -> None:
        """Take what the child wrote, and keep the last of it."""
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            with contextlib.suppress(KeyError):  # noticed before
                self._poll.unregister(self._pipe)
            return
        self._output.append(data[-_SAID_BYTES:])
        while sum(map(len, self._output)) - len(self._output[0]) >= _SAID_BYTES:
            self._output.popleft()

    def _last_words(self) -> str:
        lines = b"".join(self._output).decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_SAID_LINES:])
