"""The self-test: does every part do what it is there for, now? Runs in a thread that may wait.

The model is looked over in a process of its own, which may take its time, or crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from edge_app.catalog import ModelFiles, resolve, shipped_dir
from edge_app.commands import Check, SelfTest
from edge_app.config import ModelConfig
from edge_app.domain import EngineInfo, Frame, Pixels
from edge_app.errors import EdgeAppError
from edge_app.inference import Trial
from edge_app.sensors.sampler import Sample
from edge_app.task.classify import scores
from edge_app.task.image import fit, read_image
from edge_app.verify import differs, verify_model

_MODEL_S = 60.0
_STEP_S = 0.05
_NICE = 10  # frames come first


@dataclass(frozen=True, slots=True)
class Subjects:
    """What is tested.

    `newest_frames`: of every camera, None before the first. `live_s`: of every camera that is no
    recording, how long it may take to give a frame. `try_out`: runs a picture on the engine in use.
    `newest_sample`: what the sensors said, None when they have been silent for too long.
    """

    model: ModelConfig
    files: ModelFiles
    info: EngineInfo
    newest_frames: Callable[[], Mapping[str, Frame | None]]
    live_s: Mapping[str, float]
    try_out: Callable[[Pixels], Trial]
    newest_sample: Callable[[int], Sample | None]
    power_source: str


def run_selftest(subjects: Subjects, stopping: threading.Event) -> SelfTest:
    """Look at every part; takes a bounded time, and less once `stopping` is set."""
    start_s = time.monotonic()
    checks = [
        _check_model(subjects.model, stopping),
        *_check_cameras(subjects, stopping),
        _check_engine(subjects),
        _check_sensors(subjects),
    ]
    passed = all(check.ok for check in checks)
    return SelfTest(passed, round((time.monotonic() - start_s) * 1e3, 1), checks)


def _check_model(model: ModelConfig, stopping: threading.Event) -> Check:
    # -P: a module of the same name in the working directory must not take the place of ours.
    command = [sys.executable, "-P", "-m", __name__, model.name, model.labels, model.runtime]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    give_up_s = time.monotonic() + _MODEL_S
    while process.poll() is None and not stopping.is_set() and time.monotonic() < give_up_s:
        stopping.wait(_STEP_S)
    process.kill()
    out, _ = process.communicate()
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return Check("model", False, f"the process that looked it over ended with {name}")
    try:
        faults, summary = json.loads(out)
    except ValueError:
        code = process.returncode
        return Check("model", False, f"the process that looked it over ended with exit {code}")
    return Check("model", not faults, "; ".join(faults) or str(summary))


def _check_cameras(subjects: Subjects, stopping: threading.Event) -> Iterator[Check]:
    for name in subjects.newest_frames():
        before = subjects.newest_frames()[name]
        bound_s = subjects.live_s.get(name, 0.0)
        give_up_s = time.monotonic() + bound_s
        frame = before
        while (
            bound_s
            and (frame is None or frame is before)
            and not stopping.is_set()
            and time.monotonic() < give_up_s
        ):
            stopping.wait(_STEP_S)
            frame = subjects.newest_frames()[name]
        if frame is None or (bound_s and frame is before):
            yield Check(f"camera {name}", False, f"no new frame within {bound_s:g} s")
        else:
            height, width = frame.pixels.shape[:2]
            message = (
                f"frame {frame.seq}, {width} x {height}, mean {frame.pixels.mean():.0f} of 255"
            )
            yield Check(f"camera {name}", True, message)


def _check_engine(subjects: Subjects) -> Check:
    """Run a picture with a known answer on what answers frames now, between two of them."""
    passport, info = subjects.files.passport, subjects.info
    golden = passport.golden[0] if passport and passport.golden else None
    if golden is not None:
        picture = subjects.files.folder / golden.image
    else:
        picture = min((shipped_dir() / "samples").glob("*.jpg"))
    try:
        pixels = fit(read_image(picture), info.input_px).pixels
        trial = subjects.try_out(pixels)
    except EdgeAppError as error:
        return Check("engine", False, str(error))
    ran = f"{trial.backend} ran {picture.name} in {trial.invoke_ms:.1f} ms"
    if passport is None or golden is None:
        return Check("engine", True, f"{ran}; without a passport nobody knows the right answer")
    faults = differs(scores(trial.outputs[0], info.outputs[0]), golden.top, passport.tolerance)
    return Check("engine", not faults, "; ".join([ran, *faults]))


def _check_sensors(subjects: Subjects) -> Check:
    sample = subjects.newest_sample(time.monotonic_ns())
    if sample is None:
        return Check("sensors", False, "their thread hangs: no news for too long")
    power = sample.energy.source if sample.energy and sample.energy.newest_w is not None else None
    if power is None and subjects.power_source not in ("auto", "none"):
        return Check("sensors", False, f"power.source {subjects.power_source} does not answer")
    found = {
        "power": power,
        "soc": sample.thermal.soc is not None or None,
        "tpu": sample.thermal.tpu is not None or None,
        "throttling": sample.throttled.known is not None or None,
    }
    words = [
        name if value is True else f"{name} ({value})" for name, value in found.items() if value
    ]
    answer = f"answer: {', '.join(words)}" if words else "this machine has none that answers"
    return Check("sensors", True, answer)


def _main(name: str, labels: str, runtime: str) -> None:
    """Print a JSON list of what is wrong with a model, and a word on it."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(_NICE)
    try:
        files = resolve(name, labels)
        faults = [fault.message for fault in verify_model(files, runtime=runtime)]
    except EdgeAppError as error:
        faults, summary = [str(error)], ""
    else:
        golden = len(files.passport.golden) if files.passport else 0
        summary = (
            f"{files.name} is as its passport says, with {golden} golden images"
            if files.passport
            else f"{files.name} can be used; it has no passport"
        )
    sys.stdout.write(json.dumps([faults, summary]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
