"""The child process of `engine.child`: opens one engine and runs it on demand.

Its standard output and error go to the parent's ring, so nothing a library says gets lost or ends
up among the appliance's records. It ends when its parent does, whatever a library is doing.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edge_app.errors import EdgeAppError, ModelError

if TYPE_CHECKING:
    from edge_app.domain import Engine

_NICE = 10
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def main(link: socket.socket, memory: int, parent: int, factory: str, arguments: str) -> None:
    """Open `factory` ("module:function") with `arguments` (JSON) and serve until `link` closes."""
    _die_with(parent)
    faulthandler.disable()  # in the service it would have the last word, instead of the library
    module, _, function = factory.partition(":")
    wanted = json.loads(arguments)
    _import_gently(module, wanted)
    _tell(link, {})  # from here on it is the device that takes time
    try:
        engine: Engine = getattr(importlib.import_module(module), function)(**wanted)
    except EdgeAppError as error:
        _tell(link, {"error": str(error), "hint": error.hint, "model": _blames_model(error)})
        return
    _tell(link, {"info": asdict(engine.info)})
    _serve(engine, link, memory)


def _import_gently(module: str, wanted: Mapping[str, Any]) -> None:
    """Import what opening needs at a low priority: the parent may be busy answering frames.

    In a thread, since a priority once lowered stays low, and a device's own threads inherit it. A
    module may have more to import than itself: `prepare` does that. What goes wrong here goes wrong
    again, and is reported, when the engine is opened.
    """

    def work() -> None:
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        with contextlib.suppress(Exception):
            prepare = getattr(importlib.import_module(module), "prepare", None)
            if prepare is not None:
                prepare(wanted)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def _serve(engine: Engine, link: socket.socket, memory: int) -> None:
    from edge_app.engine.shared import DONE, FAILED, RUN, Exchange

    exchange = None
    while link.recv(1) == RUN:
        exchange = exchange or Exchange(memory, engine.info)  # sized by the parent until now
        slot = exchange.next()
        try:
            outputs = engine.run(slot.pixels)
        except EdgeAppError as error:
            link.sendall(FAILED)
            _tell(link, {"error": str(error), "hint": error.hint, "model": _blames_model(error)})
            return  # after a failed run the runtime's state is stale: only a new process is sound
        for ours, output in zip(slot.outputs, outputs, strict=True):
            ours[...] = output
        link.sendall(DONE)


def _tell(link: socket.socket, record: dict[str, object]) -> None:
    link.sendall(json.dumps(record).encode() + b"\n")


def _blames_model(error: EdgeAppError) -> bool:
    return isinstance(error, ModelError)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; a library in a loop cannot delay it.

    No core file either: an abort is routine here, and a dump would wear the SD card and keep the
    parent waiting.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _link:
        main(_link, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
    os._exit(0)  # a library's own goodbye could hang or crash; the kernel frees all there is
