"""An Edge TPU that comes and goes, with the real runtime: every row of its failure table.

The device is the stand-in: a libedgetpu whose device is a process. Whatever happens to it, every
picture gets exactly one answer, and it is the CPU twin's to the bit.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_app import catalog
from edge_app.config import ModelConfig
from edge_app.domain import Pixels
from edge_app.engine.child import Bounds
from edge_app.engine.edgetpu import EdgeTpuEngine
from edge_app.engine.failover import FailoverEngine
from edge_app.engine.health import Limits
from edge_app.engine.litert import LiteRtEngine
from edge_app.engine.opening import EdgeTpuModel
from edge_app.engine.survey import survey
from edge_app.engines import canaries, edgetpu_starter
from edge_app.errors import ConfigError, EngineError, ModelError
from tests.conftest import child_processes
from tests.contract.test_engine_child import until_ended
from tests.leaks import held, leaked, rss_mb
from tests.standin.edgetpu import Device, build, device
from tests.standin.edgetpu.compile import compiled

# Seconds become fractions of one; the rules are the appliance's.
FAST = Limits(
    canaries=3,
    pause_s=0.02,
    longest_pause_s=0.4,
    settle_s=0.05,
    flaps=10_000,
    flap_pause_s=600.0,
    check_every_s=60.0,
    too_slow=1000.0,
)
BOUNDS = Bounds(open_s=20.0, first_s=20.0, floor_s=0.5, times_p99=4.0)
PATIENT = replace(BOUNDS, floor_s=10.0)  # where a busy machine must not pass for a hanging device
_FRAME_S = 0.01
SOAK_FAULTS = int(os.environ.get("SOAK_FAULTS", "0"))  # 0: as many as fit into SOAK_S
SOAK_S = 20.0
# Of a device's return, in this time scale; on a machine that is so busy that starting takes longer
# than usual, so many times that.
BACK_WITHIN_S = 2.0
BACK_WITHIN_STARTS = 4.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> catalog.ModelFiles:
    """Return the default model with a twin "compiled" for the stand-in."""
    files = catalog.resolve("mobilenet_v2_1.0_224")
    assert files.cpu is not None
    twin = tmp_path_factory.mktemp("model") / "mobilenet_v2_1.0_224_edgetpu.tflite"
    twin.write_bytes(compiled(files.cpu.read_bytes()))
    return replace(files, edgetpu=twin)


@pytest.fixture
def tpu(
    tmp_path: Path, files: catalog.ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Device]:
    """Plug in a stand-in, which child processes of this one find."""
    assert files.cpu is not None
    with device(tmp_path / "tpu", files.cpu) as tpu:
        for name, value in tpu.environment.items():
            monkeypatch.setenv(name, value)
        yield tpu


class Rig:
    """A failover engine on the stand-in; `ask` insists on the right answer."""

    def __init__(
        self,
        files: catalog.ModelFiles,
        limits: Limits,
        bounds: Bounds,
        required_s: float | None,
    ) -> None:
        assert files.cpu is not None
        self._model = EdgeTpuModel(str(files.edgetpu), name=files.name)
        self._reference = LiteRtEngine(files.cpu)
        cpu = LiteRtEngine(files.cpu, name=files.name)
        self.engine = FailoverEngine(
            cpu,
            lambda: EdgeTpuEngine(self._model, bounds),
            canaries(files, cpu),
            limits=limits,
            required_within_s=required_s,
        )
        self.frames = 0
        self.kinds: list[str] = []
        self.messages: list[str] = []

    def ask(self) -> str:
        """Run one picture; return which backend answered."""
        pixels = self._picture()
        found, wanted = self.engine.run(pixels), self._reference.run(pixels)
        assert [each.tolist() for each in found] == [each.tolist() for each in wanted]
        self.frames += 1
        for event in self.engine.events():
            self.kinds.append(event.kind)
            self.messages.append(event.message)
        return self.engine.info.backend

    def until(self, backend: str) -> None:
        """Ask until `backend` answers."""
        deadline_s = time.monotonic() + 60
        while self.ask() != backend:
            assert time.monotonic() < deadline_s, f"{backend}: {self.engine.accelerator()}"
            time.sleep(_FRAME_S)  # as a camera would leave the processor to others

    def _picture(self) -> Pixels:
        return np.random.default_rng(self.frames).integers(0, 256, (224, 224, 3), np.uint8)


Start = Callable[..., Rig]


@pytest.fixture
def start(files: catalog.ModelFiles, tpu: Device) -> Iterator[Start]:
    rigs = []

    def start(
        limits: Limits = FAST, bounds: Bounds = PATIENT, required_s: float | None = None
    ) -> Rig:
        rig = Rig(files, limits, bounds, required_s)
        rigs.append(rig)
        return rig

    yield start
    for rig in rigs:
        rig.engine.close()


def test_on_the_device_from_the_start(start: Start, tpu: Device) -> None:
    rig = start()
    rig.until("edgetpu")
    assert [rig.ask() for _ in range(10)] == ["edgetpu"] * 10
    rig.ask()
    assert rig.kinds == ["promoted"]
    assert rig.engine.accelerator().fallbacks == 0
    assert tpu.opens[-1] == {"device": ":0", "Performance": "High"}
    assert "libedgetpu" in rig.engine.info.runtime


def test_absent_at_the_start_then_plugged_in(start: Start, tpu: Device) -> None:
    tpu.unplug()
    rig = start()
    rig.engine.settle()
    assert rig.ask() == "cpu"
    tpu.plug_in()
    rig.until("edgetpu")
    rig.ask()
    assert rig.kinds == ["fallback", "promoted"]
    assert "no Edge TPU is attached" in rig.messages[0]


@pytest.mark.parametrize("loss", ["abort", "error"])
def test_unplugged_and_plugged_in_again(start: Start, tpu: Device, loss: str) -> None:
    rig = start()
    rig.until("edgetpu")
    tpu.unplug("abort" if loss == "abort" else "error")
    assert rig.ask() == "cpu"
    tpu.plug_in()
    rig.until("edgetpu")
    rig.ask()
    assert rig.kinds[:2] == ["promoted", "fallback"]
    assert rig.kinds[-1] == "promoted"
    if loss == "abort":
        assert "SIGABRT" in rig.messages[1]


def test_a_hanging_device(start: Start, tpu: Device) -> None:
    rig = start(bounds=BOUNDS)
    rig.until("edgetpu")
    for _ in range(5):
        rig.ask()
    tpu.freeze()
    assert rig.ask() == "cpu"
    tpu.thaw()
    rig.until("edgetpu")
    rig.ask()
    assert "hangs" in rig.messages[1]


def test_a_library_that_is_too_old(
    start: Start, tpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build(too_old=True)))
    rig = start()
    rig.engine.settle()
    assert rig.ask() == "cpu"
    cause = rig.engine.accelerator().cause or ""
    assert "libedgetpu.so.1" in cause
    assert "too old" in cause


def test_wrong_output_demotes(start: Start, tpu: Device) -> None:
    rig = start(replace(FAST, check_every_s=0.05))
    rig.until("edgetpu")
    tpu.fault("wrong_output")
    deadline_s = time.monotonic() + 20
    while rig.engine.accelerator().fallbacks == 0:  # no picture meanwhile: wrong
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert rig.ask() == "cpu"
    assert "wrong output" in rig.messages[-1]
    tpu.heal()
    rig.until("edgetpu")


def test_a_slow_device_is_told(start: Start, tpu: Device) -> None:
    rig = start(replace(FAST, check_every_s=0.2))
    rig.until("edgetpu")
    for _ in range(300):
        rig.ask()
    baseline_ms = rig.engine.accelerator().baseline_p95_ms
    assert baseline_ms
    tpu.fault("invoke_slow", seconds=4 * baseline_ms / 1e3 + 0.02)
    deadline_s = time.monotonic() + 60
    while "accelerator_slow" not in rig.kinds:
        assert time.monotonic() < deadline_s, rig.engine.accelerator()
        rig.ask()  # by the device; by the CPU while a slow canary holds it
    assert rig.engine.accelerator().fallbacks == 0  # slow, yet right


def test_a_flapping_device_is_held_down(start: Start, tpu: Device) -> None:
    rig = start(replace(FAST, flaps=2))
    for _ in range(2):
        rig.until("edgetpu")
        tpu.fault("invoke_error", times=1)
        assert rig.ask() == "cpu"
    rig.ask()
    assert rig.engine.accelerator().state == "backing_off"
    assert rig.kinds.count("fallback") == 2


def test_another_clock_while_it_serves(
    start: Start, tpu: Device, files: catalog.ModelFiles
) -> None:
    rig = start()
    rig.until("edgetpu")
    rig.engine.reopen(edgetpu_starter(ModelConfig(), files, "low"))
    assert rig.ask() == "cpu"
    rig.until("edgetpu")
    rig.ask()
    assert [options["Performance"] for options in tpu.opens] == ["High", "Low"]
    assert rig.kinds == ["promoted", "reopening", "promoted"]
    assert rig.engine.accelerator().fallbacks == 0


REFUSALS = {
    "absent": "no Edge TPU is attached",
    "refused": "an Edge TPU is attached but cannot be opened",
    "no-such-device": 'there is no "usb:7"',
    "no-library": r"libedgetpu.so.1 cannot be loaded: .*No such file",
    "not-compiled": "not compiled for the Edge TPU",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_each_way_to_fail_has_its_own_cause_and_cure(
    what: str, tpu: Device, files: catalog.ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = EdgeTpuModel(str(files.edgetpu))
    match what:
        case "absent":
            tpu.unplug()
        case "refused":
            tpu.fault("open_refused")
        case "no-such-device":
            model = replace(model, device="usb:7")
        case "no-library":
            monkeypatch.delenv("LD_LIBRARY_PATH")
        case "not-compiled":
            model = replace(model, path=str(files.cpu))
    child = EdgeTpuEngine(model, BOUNDS)
    try:
        with pytest.raises(EngineError, match=REFUSALS[what]) as caught:
            child.open()
    finally:
        child.close()
    assert caught.value.hint
    assert isinstance(caught.value, ModelError) == (what == "not-compiled")


BARRED = """
import functools, sys
from pathlib import Path
from edge_app.engine import devices, opening
from edge_app.errors import EngineError
# The library and its device are the stand-in's; the kernel's lists have to be written.
devices.attached = functools.partial(devices.attached, Path(sys.argv[2]), Path(sys.argv[2]))
try:
    opening.open_here(path=sys.argv[1])
except EngineError as error:
    print(error, error.hint, sep="; ")
"""


def test_permission_denied(tpu: Device, files: catalog.ModelFiles, tmp_path: Path) -> None:
    usb = tmp_path / "bus/usb/devices/2-1"
    usb.mkdir(parents=True)
    said = {"idVendor": "18d1", "idProduct": "9302", "busnum": "2", "devnum": "4"}
    for field, value in said.items():
        (usb / field).write_text(value)
    node = tmp_path / "bus/usb/002/004"
    node.parent.mkdir()
    node.touch(0)
    tpu.socket.chmod(0)
    command = [sys.executable, "-c", BARRED, str(files.edgetpu), str(tmp_path)]
    if os.geteuid() == 0:  # without these capabilities, permissions bind root like anybody
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert f"{node}: permission denied" in done.stdout, done.stderr
    assert "udev" in done.stdout


PROBE = """
import sys
from edge_app.engine import opening
from edge_app.errors import EngineError
model = {"path": sys.argv[1]}
for attempt in (lambda: opening.prepare(model), lambda: opening.open_here(**model)):
    try:
        attempt()
    except EngineError as error:
        print(error)
print([name for name in ("numpy", "ai_edge_litert", "tflite_runtime") if name in sys.modules])
"""


def test_looking_for_what_is_not_there_takes_little(tpu: Device, files: catalog.ModelFiles) -> None:
    tpu.unplug()
    command = [sys.executable, "-c", PROBE, str(files.edgetpu)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    *causes, imported = done.stdout.splitlines()
    assert len(causes) == 2
    assert all("no Edge TPU is attached" in cause for cause in causes)
    assert imported == "[]"


def test_a_compiled_model_without_its_delegate(files: catalog.ModelFiles) -> None:
    assert files.edgetpu is not None
    with pytest.raises(ModelError, match="compiled for the Edge TPU, cannot run on the CPU"):
        LiteRtEngine(files.edgetpu)


def test_an_unknown_device_string(files: catalog.ModelFiles) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        EdgeTpuEngine(EdgeTpuModel(str(files.edgetpu), device="/dev/bus/usb/001/002"))


def test_required(start: Start, tpu: Device) -> None:
    assert start(required_s=30.0).ask() == "edgetpu"


def test_required_and_refused(start: Start, tpu: Device) -> None:
    tpu.fault("open_refused")
    with pytest.raises(EngineError, match="cannot be opened") as caught:
        start(required_s=30.0)
    assert caught.value.exit_code == 69
    assert caught.value.hint


def test_required_and_the_first_open_fails(start: Start, tpu: Device) -> None:
    tpu.fault("open_refused", times=1)  # as a Coral's may that has just loaded its firmware
    assert start(required_s=30.0).ask() == "edgetpu"


ORPHAN = """
import sys
from edge_app.engine.edgetpu import EdgeTpuEngine
from edge_app.engine.opening import EdgeTpuModel
import numpy as np
child = EdgeTpuEngine(EdgeTpuModel(sys.argv[1]))
child.open()
print(child.pid, flush=True)
while True:
    child.run(np.zeros((224, 224, 3), np.uint8))
"""


@pytest.mark.parametrize("hangs", [False, True])
def test_the_child_ends_with_a_killed_parent(
    tpu: Device, files: catalog.ModelFiles, hangs: bool
) -> None:
    command = [sys.executable, "-c", ORPHAN, str(files.edgetpu)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if hangs:
            tpu.freeze()  # the child is inside the library
        parent.kill()
        until_ended(pid)


def test_a_survey_opens_no_device(tpu: Device) -> None:
    found = survey()
    assert found.problem == ""
    assert found.library_version is not None
    assert [line.split()[0] for line in found.listed] == ["usb"]
    assert tpu.opens == []


def test_a_survey_outlives_a_library_that_is_missing() -> None:
    found = survey("libedgetpu-that-is-not-there.so.1")
    assert found.library_version is None
    assert "cannot be loaded" in found.problem


def strike(tpu: Device, rng: random.Random) -> str:
    """Do something bad to the device; return what."""
    fault = rng.choice(
        ["abort", "error", "invoke_error", "invoke_abort", "hang", "kill", "open_refused", "absent"]
    )
    match fault:
        case "abort" | "error":
            tpu.unplug("abort" if fault == "abort" else "error", returns_after_s=0.05)
        case "invoke_error" | "invoke_abort":
            tpu.fault("invoke_error" if fault == "invoke_error" else "invoke_abort", times=1)
        case "hang":
            tpu.freeze()
        case "kill":
            for pid, command in child_processes():
                if "edge_app.engine.worker" in command:
                    os.kill(pid, signal.SIGKILL)
        case "open_refused":
            tpu.fault("open_refused", times=1)
            tpu.unplug()
            tpu.plug_in()
        case "absent":
            tpu.unplug()
    return fault


@pytest.mark.timeout(7200)
def test_soak(start: Start, tpu: Device) -> None:
    """Mixed faults, one after the other: `make soak` injects 1,000."""
    rng = random.Random(4)
    began_s = time.monotonic()
    rig = start(bounds=BOUNDS)
    rig.until("edgetpu")
    start_s = time.monotonic() - began_s
    before, before_mb = held(), rss_mb()
    back_s: list[float] = []
    tries: list[int] = []
    while len(back_s) < SOAK_FAULTS or not (
        SOAK_FAULTS or time.monotonic() > began_s + start_s + SOAK_S
    ):
        fault = strike(tpu, rng)
        rig.until("cpu")
        if fault == "absent":
            tpu.plug_in()
        elif fault == "hang":
            tpu.thaw()
        while not tpu.visible:  # its process is starting
            rig.ask()
        returned_s, opened = time.monotonic(), len(tpu.opens)
        rig.until("edgetpu")
        back_s.append(time.monotonic() - returned_s)
        tries.append(len(tpu.opens) - opened)
    accelerator = rig.engine.accelerator()
    sys.stdout.write(
        f"\n{len(back_s)} faults, {rig.frames} frames; back within {max(back_s):.2f} s, median "
        f"{statistics.median(back_s):.2f} s, {max(tries)} openings at most; first start "
        f"{start_s:.2f} s; memory {before_mb:.0f} -> {rss_mb():.0f} MB\n"
    )
    assert accelerator.promotions > len(back_s)  # a busy machine may add a fault of its own
    assert leaked(before) == (0, 0)
    assert rss_mb() < before_mb + 30
    assert len(child_processes()) == 2  # the device and the one child
    assert statistics.median(back_s) < max(BACK_WITHIN_S, BACK_WITHIN_STARTS * start_s)
