"""First use of a model file that nobody vouches for, in a process that may crash.

The interpreter trusts the file: a damaged one can make it read or write anywhere, which no
exception reports. So a file without a passport is loaded and run once in a child process; when
that survives, this very file can be loaded here.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from edge_app.engine.litert import LiteRtEngine
from edge_app.errors import EngineError, ModelError

TIMEOUT_S = 60.0


def try_model(path: Path, *, runtime: str = "auto", timeout_s: float = TIMEOUT_S) -> None:
    """Load and run the model at `path` in a child process.

    Raises what loading it raises (ModelError, EngineError), and ModelError when the runtime
    crashes on it or takes longer than `timeout_s`.
    """
    # -P: a module of the same name in the working directory must not take the place of ours.
    command = [sys.executable, "-P", "-m", __name__, str(path), runtime]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{path}: the runtime is still busy with it after {timeout_s:g} s", hint=_HINT
        ) from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ModelError(f"{path}: the runtime crashes on it ({name})", hint=_HINT)
    try:
        message, hint, is_model = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise ModelError(
            f"{path}: its trial ended with exit status {done.returncode} and no answer", hint=_HINT
        ) from None
    if message:
        raise (ModelError if is_model else EngineError)(message, hint)


_HINT = "the file is damaged or not a model for this runtime; get it again from its source"


def _main(path: str, runtime: str) -> None:
    answer = ("", "", True)
    try:
        engine = LiteRtEngine(Path(path), runtime=runtime)
        width, height = engine.info.input_px
        engine.run(np.full((height, width, 3), 128, np.uint8))
    except EngineError as error:
        answer = (str(error), error.hint, isinstance(error, ModelError))
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
