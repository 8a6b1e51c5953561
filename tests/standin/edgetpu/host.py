"""A process that uses the Edge TPU, for the tests to talk to: it may hang, abort or crash.

It does what pycoral's `make_interpreter` does, with the real runtime and nothing of ours between,
so it behaves as any program would that loads libedgetpu. One JSON array a line tells it what to
do, one JSON object a line is its answer.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edge_app.domain import Tensor
from edge_app.engine.litert import find_runtime

_ROOT = Path(__file__).parents[3]
_LIBRARY = "libedgetpu.so.1"
_PATIENCE_S = 60.0


class HostDied(Exception):
    """The process ended in place of an answer. `signal` is None when it was not killed by one."""

    def __init__(self, returncode: int, stderr: str) -> None:
        super().__init__(f"exit status {returncode}: {stderr}")
        self.signal = signal.Signals(-returncode) if returncode < 0 else None
        self.stderr = stderr


class HostError(Exception):
    """What the runtime raised in the process; the text begins with the exception's name."""


class Host:
    """Runs the process; a context manager."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, runtime: str = "auto"
    ) -> None:
        """Start with `environment` beside this process's own; `folder` is for exchanged files."""
        self.runtime = runtime
        self._folder = folder
        self._stderr = (folder / f"host-{id(self)}.stderr").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.standin.edgetpu.host", runtime],
            cwd=_ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.kill()
        for file in (self._process.stdin, self._process.stdout, self._stderr):
            assert file is not None
            file.close()

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        self._process.kill()
        self._process.wait()

    def devices(self) -> list[tuple[int, str]]:
        """Return type (0: PCI, 1: USB) and path of every device, as libedgetpu lists them."""
        return [(kind, path) for kind, path in self._ask("list")]

    def open(self, model: Path, **options: str) -> list[str]:
        """Load the delegate and the model; return the names of the graph's operators."""
        self.start_open(model, **options)
        return self.finish_open()

    def start_open(self, model: Path, **options: str) -> None:
        """Begin what `finish_open` ends."""
        self._tell("open", str(model), options)

    def finish_open(self) -> list[str]:
        return list(self._answer())

    def run(self, codes: Tensor) -> list[Tensor]:
        """Invoke on the codes of the only input."""
        self.start_run(codes)
        return self.finish_run()

    def start_run(self, codes: Tensor) -> None:
        """Begin what `finish_run` ends."""
        np.save(self._folder / "in.npy", codes)
        self._tell("run", str(self._folder / "in.npy"), str(self._folder / "out.npz"))

    def finish_run(self) -> list[Tensor]:
        self._answer()
        with np.load(self._folder / "out.npz") as outputs:
            return [outputs[name] for name in outputs]

    def answers_within(self, seconds: float) -> bool:
        """Say whether an answer, or the end of the process, comes within `seconds`."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def reopen(self, times: int, model: Path) -> int:
        """Open, run once and close so many times; return how many descriptors are left."""
        return int(self._ask("reopen", times, str(model)))

    def close(self) -> None:
        """Drop interpreter and delegate."""
        self._ask("close")

    def _ask(self, *command: Any) -> Any:
        self._tell(*command)
        return self._answer()

    def _tell(self, *command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not self.answers_within(_PATIENCE_S):
            raise TimeoutError(f"no answer within {_PATIENCE_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            returncode = self._process.wait()
            self._stderr.seek(0)
            raise HostDied(returncode, self._stderr.read().decode(errors="replace"))
        answer = json.loads(line)
        if "error" in answer:
            raise HostError(answer["error"])
        return answer["is"]


class _User:
    """The program inside the process."""

    def __init__(self, runtime: str) -> None:
        _, self._module = find_runtime(runtime)
        self._interpreter: Any = None

    def do(self, command: str, *arguments: Any) -> Any:
        match command:
            case "list":
                return _list_devices()
            case "open":
                return self._open(*arguments)
            case "run":
                return self._run(*arguments)
            case "reopen":
                return self._reopen(*arguments)
            case "close":
                self._interpreter = None
                return None
        raise AssertionError(command)

    def _open(self, model: str, options: Mapping[str, str]) -> list[str]:
        self._interpreter = None
        # Only the interpreter keeps the delegate: they must go in the right order.
        self._interpreter = self._module.Interpreter(
            model_path=model,
            experimental_delegates=[self._module.load_delegate(_LIBRARY, options)],
        )
        self._interpreter.allocate_tensors()
        return [operator["op_name"] for operator in self._interpreter._get_ops_details()]

    def _run(self, source: str, target: str) -> None:
        (detail,) = self._interpreter.get_input_details()
        self._interpreter.set_tensor(detail["index"], np.load(source))
        self._interpreter.invoke()
        details = self._interpreter.get_output_details()
        np.savez(target, *[self._interpreter.get_tensor(detail["index"]) for detail in details])

    def _reopen(self, times: int, model: str) -> int:
        for _ in range(times):
            self._open(model, {})
            self._interpreter.invoke()
        self._interpreter = None
        return len(list(Path("/proc/self/fd").iterdir()))


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))


def _list_devices() -> list[tuple[int, str]]:
    library = ctypes.CDLL(_LIBRARY)
    library.edgetpu_list_devices.restype = ctypes.POINTER(_Device)
    count = ctypes.c_size_t()
    devices = library.edgetpu_list_devices(ctypes.byref(count))
    found = [(devices[i].type, devices[i].path.decode()) for i in range(count.value)]
    library.edgetpu_free_devices(devices)
    return found


def main(runtime: str) -> None:
    """Obey until standard input ends."""
    user = _User(runtime)
    for line in sys.stdin:
        try:
            answer = {"is": user.do(*json.loads(line))}
        except (ValueError, RuntimeError, OSError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
