"""An engine for child processes that does what a file tells it to, to stand for a device.

The file holds two words: what to do when opened, and what to do when run. Each run's answer is the
picture itself, flattened, so a right answer proves that the right picture arrived.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_app.domain import EngineInfo, Pixels, Tensor, TensorSpec
from edge_app.errors import EngineError, ModelError

SHAPE = (4, 4, 3)
CLASSES = 48
FACTORY = "tests.faulty_engine:open_device"
ROOT = Path(__file__).parents[1]


class Echo:
    """Answers with the picture's bytes; `backend` names who answered."""

    def __init__(self, backend: str, behaviour: Path | None = None) -> None:
        self._behaviour = behaviour
        self.info = EngineInfo(
            model="echo",
            backend=backend,
            runtime="none",
            device="",
            threads=1,
            input=TensorSpec("picture", (1, *SHAPE), "uint8"),
            outputs=(TensorSpec("flat", (1, CLASSES), "uint8", 1 / 256),),
        )

    def run(self, pixels: Pixels) -> list[Tensor]:
        if pixels.shape != SHAPE:
            raise EngineError(f"takes uint8 pixels of shape {SHAPE}, got {pixels.shape}")
        if self._behaviour is not None:
            word = _words(self._behaviour)[1]
            _misbehave(word, self._behaviour)
            if word == "wrong":
                return [255 - pixels.reshape(-1)]
        return [pixels.reshape(-1).copy()]

    def close(self) -> None:
        pass


def set_behaviour(path: Path, opening: str = "well", running: str = "well") -> None:
    """Tell the device what to do from now on; readers see the old words or the new ones."""
    partial = path.with_suffix(".part")
    partial.write_text(f"{opening} {running}")
    partial.replace(path)


def open_device(behaviour: str, backend: str = "edgetpu") -> Echo:
    """Open the device, if it lets itself be opened."""
    word = _words(Path(behaviour))[0]
    if word == "absent":
        raise EngineError("no Edge TPU is attached", hint="plug it in")
    if word == "unfit":
        raise ModelError("not compiled for the Edge TPU", hint="compile it")
    _misbehave(word, Path(behaviour))
    return Echo(backend, Path(behaviour))


def no_device(**_rest: Any) -> Mapping[str, str]:
    """Fail with a bug rather than an error."""
    raise KeyError("a bug in the factory")


def _words(behaviour: Path) -> list[str]:
    return behaviour.read_text().split()


def _misbehave(word: str, behaviour: Path) -> None:
    match word:
        case "abort":
            os.write(2, b"F driver/usb/usb_driver.cc:857] transfer on tag 2 failed\n")
            os.abort()
        case "crash":
            ctypes.string_at(0)
        case "hang":
            behaviour.with_suffix(".hangs").touch()
            signal.pause()
        case "exit":
            sys.exit(3)
        case "fail":
            raise EngineError("echo failed: EdgeTpuDelegateForCustomOp failed to invoke.")
        case "slow":
            time.sleep(0.05)
        case "chatter":
            os.write(2, b"".join(b"line %d\n" % line for line in range(20_000)))


def picture(seed: int) -> Pixels:
    """Return a picture of its own for each seed."""
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)
