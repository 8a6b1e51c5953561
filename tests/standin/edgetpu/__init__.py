"""A stand-in Edge TPU: a real `libedgetpu.so.1` whose device is a process.

    library = build()
    model_edgetpu.write_bytes(compiled(model.read_bytes()))
    with device(tmp_path / "tpu", model, library) as tpu:
        subprocess.Popen(command, env=os.environ | tpu.environment)  # load_delegate finds it there
        tpu.fault("invoke_error", times=1)
        tpu.unplug()
        tpu.plug_in()

The dynamic linker reads LD_LIBRARY_PATH once, when a process starts, so the library is found only
in processes started with `environment`. The library can abort its process, as the real one can.

What it does not do: share one open device between interpreters of a process (the second open is
refused), list more than one device, or notice a lost device before the next inference.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.standin.edgetpu.faults import Fault, Kind, set_fault, times_struck

__all__ = ["Device", "Fault", "Kind", "build", "device"]

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
BUILD = _ROOT / "build" / "edgetpu-standin"
_FLAGS = ("-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror")
_SHARED = ("-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-soname,libedgetpu.so.1")
# What fits into sockaddr_un with its final zero.
_SOCKET_PATH_MAX = 107


def build(folder: Path = BUILD, *, too_old: bool = False, compiler: str = "gcc") -> Path:
    """Return a directory that holds `libedgetpu.so.1`, built unless it is there already.

    `too_old`: built against the 64-byte TfLiteRegistration of TensorFlow 2.11 and older, as
    Google's own library of 2021 is; today's runtimes crash on it.
    """
    command = [compiler, *_FLAGS, *(["-DTOO_OLD"] if too_old else []), *_SHARED]
    digest = hashlib.sha256(" ".join(command).encode())
    for name in ("libedgetpu.c", "tflite_abi.h"):
        digest.update((_HERE / name).read_bytes())
    directory = folder / digest.hexdigest()[:16]
    library = directory / "libedgetpu.so.1"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        new = directory / f"{library.name}.{os.getpid()}"
        subprocess.run([*command, "-o", new, _HERE / "libedgetpu.c"], check=True)
        new.replace(library)
    return directory


class Device:
    """The stand-in device; made by `device`. Every method takes effect before it returns.

    Plug it in from a thread that lives on: the device process dies with the one that started it.
    """

    def __init__(
        self, folder: Path, twin: Path, library: Path, *, runtime: str, invoke_s: float
    ) -> None:
        socket_path = str(folder / "socket")
        if len(socket_path.encode()) > _SOCKET_PATH_MAX:
            raise ValueError(
                f"{socket_path}: {len(socket_path.encode())} bytes; the path of a Unix socket "
                f"has at most {_SOCKET_PATH_MAX}: use a shorter folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._library = library
        self._command = [
            *(sys.executable, "-m", "tests.standin.edgetpu.device"),
            *(str(folder.absolute()), str(twin.absolute()), runtime, str(invoke_s)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables a process needs to find the library and this device."""
        path = [str(self._library), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {
            "LD_LIBRARY_PATH": ":".join(path),
            "EDGETPU_STANDIN": str(self._folder.absolute()),
        }

    @property
    def pid(self) -> int:
        """The device process. Raises RuntimeError when it is not plugged in."""
        if self._process is None:
            raise RuntimeError("the stand-in device is not plugged in")
        return self._process.pid

    @property
    def log(self) -> str:
        """What the device process wrote to its standard error."""
        path = self._folder / "device.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def opens(self) -> list[dict[str, str]]:
        """The delegate options of every opening so far, those that met a fault too."""
        path = self._folder / "opens"
        lines = path.read_text().splitlines() if path.exists() else []
        return [dict(pair.split("=", 1) for pair in line.split("\t") if pair) for line in lines]

    @property
    def socket(self) -> Path:
        """What must be opened for it, as a device node would be."""
        return self._folder / "socket"

    @property
    def visible(self) -> bool:
        """Whether hosts can see it."""
        return self.socket.exists()

    def plug_in(self) -> None:
        """Start the device process, and wait until hosts can see it."""
        self._end()
        self._start(stdout=subprocess.PIPE, appears_s=0.0)
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            if stdout.readline() != b"ready\n":
                raise RuntimeError(f"the stand-in device does not start:\n{self.log}")

    def unplug(
        self, loss: Literal["abort", "error"] = "abort", *, returns_after_s: float | None = None
    ) -> None:
        """Kill the device process; with `returns_after_s`, another takes its place then.

        `loss`: what the library does to a host that is using the device, or tries its next
        inference: abort, as the real one mostly does, or return an error.
        """
        as_error = self._folder / "loss_is_an_error"
        if loss == "error":
            as_error.touch()
        else:
            as_error.unlink(missing_ok=True)
        self._end()
        if returns_after_s is not None:
            self._start(stdout=subprocess.DEVNULL, appears_s=time.monotonic() + returns_after_s)

    def freeze(self) -> None:
        """Stop the device process: it is still listed, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        # Until every thread has stopped, one of them may still answer.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen device go on where it was."""
        os.kill(self.pid, signal.SIGCONT)

    def fault(
        self, kind: Kind, *, times: int | None = None, seconds: float = 0.0, mask: int = 0x55
    ) -> None:
        """Replace the device's fault, from its next open or inference on. See `Fault`.

        It lasts until `heal`, or has struck `times` times; unplugging does not cure it.
        """
        set_fault(self._folder, Fault(kind, times, seconds, mask))

    @property
    def struck(self) -> int:
        """How many requests have met the present fault."""
        return times_struck(self._folder)

    def heal(self) -> None:
        """Take the fault away."""
        set_fault(self._folder, None)

    def _start(self, *, stdout: int, appears_s: float) -> None:
        with (self._folder / "device.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, str(appears_s)],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
            )

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.socket.unlink(missing_ok=True)


@contextmanager
def device(
    folder: Path,
    twin: Path,
    library: Path | None = None,
    *,
    plugged_in: bool = True,
    runtime: str = "auto",
    invoke_s: float = 0.0,
) -> Iterator[Device]:
    """Yield a stand-in device that computes what the CPU model `twin` does.

    `folder` is the device's own, with a short path; `library` comes from `build`. `runtime` is
    `find_runtime`'s. An inference takes `invoke_s`, or as long as the twin does if that is longer.
    """
    tpu = Device(folder, twin, library or build(), runtime=runtime, invoke_s=invoke_s)
    try:
        if plugged_in:
            tpu.plug_in()
        yield tpu
    finally:
        tpu._end()
