"""The process in the device's place: it runs the compiled model's CPU twin for libedgetpu.c.

Started by `Device.plug_in`. Killing it is pulling the cable, SIGSTOP is a device that hangs.

The wire is a header of two uint32, what and how many bytes follow, and those bytes. A host opens
(with its options as `key=value` lines) and then invokes (with its inputs, one after the other); a
reply carries the outputs, or a message. One host at a time: the next is refused, as on USB.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.engine.litert import find_runtime
from tests.standin.edgetpu.faults import strike

_HEADER = struct.Struct("=II")
_OPEN, _INVOKE = 1, 2
_OK, _FAILED, _FATAL, _REFUSED = 0, 1, 2, 3
_FAILURES = {
    "invoke_error": (_FAILED, b"Failed to execute request. Deadline exceeded."),
    "invoke_abort": (_FATAL, b"transfer on tag 2 failed. Abort. USB transfer error 1"),
}
_MESSAGE_MAX = 255  # what libedgetpu.c has room for
# A host that was killed a moment ago still holds the device until its thread here has noticed.
_HANDOVER_S = 1.0
# From <linux/prctl.h>: a killed test run leaves no device behind.
_PR_SET_PDEATHSIG = 1


class HostGone(Exception):
    """The host closed the connection, or died."""


class Twin:
    """The CPU model that computes what the device would."""

    def __init__(self, path: Path, runtime: str) -> None:
        _, module = find_runtime(runtime)
        self._interpreter: Any = module.Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()

    def run(self, inputs: bytes) -> bytes:
        """Return the bytes of all outputs. Raises ValueError when `inputs` are not its own."""
        at = 0
        for detail in self._inputs:
            count = int(np.prod(detail["shape"]))
            codes = np.frombuffer(inputs, detail["dtype"], count, at)
            self._interpreter.set_tensor(detail["index"], codes.reshape(detail["shape"]))
            at += codes.nbytes
        if at != len(inputs):
            raise ValueError(f"{len(inputs)} bytes of input, {at} are right")
        self._interpreter.invoke()
        tensors = [self._interpreter.get_tensor(detail["index"]) for detail in self._outputs]
        return b"".join(tensor.tobytes() for tensor in tensors)


class Host:
    """One connection from libedgetpu.c."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def receive(self) -> tuple[int, bytes]:
        kind, size = _HEADER.unpack(self._exactly(_HEADER.size))
        return kind, self._exactly(size)

    def reply(self, kind: int, payload: bytes = b"") -> None:
        try:
            self._connection.sendall(_HEADER.pack(kind, len(payload)) + payload)
        except OSError as error:
            raise HostGone from error

    def keep_waiting(self, seconds: float | None) -> None:
        """Say nothing for `seconds`, or for ever. A host that waits for a reply sends nothing."""
        if select.select([self._connection], [], [], seconds)[0]:
            raise HostGone

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                part = self._connection.recv(size - len(data))
            except OSError as error:
                raise HostGone from error
            if not part:
                raise HostGone
            data += part
        return bytes(data)


class DeviceProcess:
    """Serves hosts, each in a thread, one of them at a time with the device open."""

    def __init__(self, folder: Path, twin: Twin, invoke_s: float) -> None:
        self._folder = folder
        self._twin = twin
        self._invoke_s = invoke_s
        self._free = threading.Lock()

    def serve(self, connection: socket.socket) -> None:
        host = Host(connection)
        try:
            kind, options = host.receive()
            if kind != _OPEN or not self._free.acquire(timeout=_HANDOVER_S):
                host.reply(_REFUSED)
                return
            try:
                self._open(host, options)
                while True:
                    self._invoke(host)
            finally:
                self._free.release()
        except HostGone:
            pass
        finally:
            connection.close()

    def _open(self, host: Host, options: bytes) -> None:
        with (self._folder / "opens").open("ab") as file:
            file.write(options.replace(b"\n", b"\t") + b"\n")
        fault = strike(self._folder, "open")
        if fault is not None:
            host.keep_waiting(None if fault.kind == "open_hang" else fault.seconds)
            if fault.kind == "open_refused":
                host.reply(_REFUSED)
                raise HostGone
        host.reply(_OK)

    def _invoke(self, host: Host) -> None:
        kind, inputs = host.receive()
        asked_s = time.monotonic()
        if kind != _INVOKE:
            raise HostGone
        fault = strike(self._folder, "invoke")
        if fault and fault.kind in _FAILURES:
            host.reply(*_FAILURES[fault.kind])
            return
        if fault and fault.kind == "invoke_hang":
            host.keep_waiting(None)
        try:
            outputs = self._twin.run(inputs)
        except ValueError as error:
            host.reply(_FAILED, f"the model is not the twin's: {error}".encode()[:_MESSAGE_MAX])
            return
        if fault and fault.kind == "wrong_output":
            outputs = (np.frombuffer(outputs, np.uint8) ^ np.uint8(fault.mask)).tobytes()
        is_slow = fault and fault.kind == "invoke_slow"
        takes_s = fault.seconds if fault and is_slow else self._invoke_s
        host.keep_waiting(max(0.0, asked_s + takes_s - time.monotonic()))
        host.reply(_OK, outputs)


def main(folder: str, twin: str, runtime: str, invoke_s: str, appears_s: str) -> None:
    """Listen from the monotonic time `appears_s` on; say so on standard output."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    device = DeviceProcess(Path(folder), Twin(Path(twin), runtime), float(invoke_s))
    time.sleep(max(0.0, float(appears_s) - time.monotonic()))
    path = Path(folder, "socket")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        os.write(1, b"ready\n")
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=device.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
