"""The stand-in Edge TPU fails as the real one does, seen by the real runtime.

What a working device does is in test_edgetpu.py, which runs on a real one, too.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_app.engine.litert import RUNTIMES
from tests import tiny_models
from tests.spools import wait_until
from tests.standin.edgetpu import Device, Kind, build, device
from tests.standin.edgetpu.compile import compiled
from tests.standin.edgetpu.host import Host, HostDied, HostError

# Only what is installed, as in the engine's contract.
INSTALLED = [name for name, package in RUNTIMES.items() if importlib.util.find_spec(package)]
CODES = np.arange(12, dtype=np.int8).reshape(1, 2, 2, 3)
FLAT = CODES.reshape(1, 12)
A_WHILE_S = 0.2
LONGER_THAN_A_START_S = 1.0


@pytest.fixture(params=INSTALLED)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    """Return a CPU model that gives its input back, flattened."""
    path = tmp_path / "flat.tflite"
    path.write_bytes(tiny_models.reshape_model())
    return path


@pytest.fixture
def model(twin: Path) -> Path:
    """Return the twin, compiled."""
    path = twin.with_name("flat_edgetpu.tflite")
    path.write_bytes(compiled(twin.read_bytes()))
    return path


@pytest.fixture
def tpu(tmp_path: Path, twin: Path, runtime: str) -> Iterator[Device]:
    with device(tmp_path / "tpu", twin, build(), runtime=runtime) as tpu:
        yield tpu


@pytest.fixture
def host(tmp_path: Path, tpu: Device, runtime: str) -> Iterator[Host]:
    with Host(tmp_path, tpu.environment, runtime=runtime) as host:
        yield host


def wait_for_the_fault(tpu: Device) -> None:
    """Wait until the request that meets the fault has reached the device."""
    while not tpu.struck:
        pass


def is_flat(outputs: list[np.ndarray]) -> bool:
    (output,) = outputs
    return bool((output == FLAT).all())


def test_absent_at_start_and_plugged_in_later(tpu: Device, host: Host, model: Path) -> None:
    tpu.unplug()
    assert host.devices() == []
    with pytest.raises(HostError, match=r"ValueError: Failed to load delegate from .*so\.1\n$"):
        host.open(model)
    tpu.plug_in()
    assert len(host.devices()) == 1
    host.open(model)
    assert is_flat(host.run(CODES))


def test_listing_does_not_open(tpu: Device, host: Host) -> None:
    host.devices()
    assert tpu.opens == []


def test_the_device_is_told_the_options(tpu: Device, host: Host, model: Path) -> None:
    host.open(model, device="usb:0", Performance="High")
    assert tpu.opens == [{"device": "usb:0", "Performance": "High"}]


def test_refused_at_opening_but_listed(tpu: Device, host: Host, model: Path) -> None:
    tpu.fault("open_refused")
    assert len(host.devices()) == 1
    with pytest.raises(HostError, match="ValueError: Failed to load delegate"):
        host.open(model)
    tpu.heal()
    host.open(model)


def test_unplugged_between_inferences_aborts_the_host(tpu: Device, host: Host, model: Path) -> None:
    host.open(model)
    tpu.unplug()
    with pytest.raises(HostDied) as died:
        host.run(CODES)
    assert died.value.signal is signal.SIGABRT
    assert "USB transfer error" in died.value.stderr


def test_unplugged_during_an_inference_aborts_the_host(
    tpu: Device, host: Host, model: Path
) -> None:
    host.open(model)
    tpu.fault("invoke_hang")
    host.start_run(CODES)
    wait_for_the_fault(tpu)
    tpu.unplug()
    with pytest.raises(HostDied) as died:
        host.finish_run()
    assert died.value.signal is signal.SIGABRT


def test_unplugged_as_an_error_lasts_until_it_is_opened_again(
    tpu: Device, host: Host, model: Path
) -> None:
    host.open(model)
    tpu.unplug("error")
    with pytest.raises(HostError, match=r"RuntimeError: .*device is gone"):
        host.run(CODES)
    tpu.plug_in()
    with pytest.raises(HostError, match="RuntimeError"):
        host.run(CODES)
    host.open(model)
    assert is_flat(host.run(CODES))


def test_how_it_is_lost_is_said_each_time(tpu: Device, host: Host, model: Path) -> None:
    tpu.unplug("error")
    tpu.plug_in()
    host.open(model)
    tpu.unplug()
    with pytest.raises(HostDied):
        host.run(CODES)


def test_returns_after_a_time(tpu: Device, host: Host, model: Path) -> None:
    assert host.devices()
    started_s = time.monotonic()
    tpu.unplug(returns_after_s=LONGER_THAN_A_START_S)
    while not host.devices():
        pass
    assert time.monotonic() - started_s >= LONGER_THAN_A_START_S
    host.open(model)
    assert is_flat(host.run(CODES))


def test_an_error_once(tpu: Device, host: Host, model: Path) -> None:
    host.open(model)
    tpu.fault("invoke_error", times=1)
    with pytest.raises(HostError, match=r"RuntimeError: .*Deadline exceeded"):
        host.run(CODES)
    assert is_flat(host.run(CODES))


def test_an_error_for_ever_outlives_the_cable(tpu: Device, host: Host, model: Path) -> None:
    tpu.fault("invoke_error")
    host.open(model)
    for _ in range(3):
        with pytest.raises(HostError, match="RuntimeError"):
            host.run(CODES)
    tpu.unplug("error")
    tpu.plug_in()
    host.open(model)
    with pytest.raises(HostError, match="RuntimeError"):
        host.run(CODES)


def test_a_fault_that_struck_does_not_strike_again_after_the_cable(
    tpu: Device, host: Host, model: Path
) -> None:
    tpu.fault("invoke_error", times=1)
    host.open(model)
    with pytest.raises(HostError, match="RuntimeError"):
        host.run(CODES)
    tpu.unplug("error")
    tpu.plug_in()
    host.open(model)
    assert is_flat(host.run(CODES))


def test_an_abort_leaves_the_device_there(
    tmp_path: Path, tpu: Device, host: Host, model: Path
) -> None:
    host.open(model)
    tpu.fault("invoke_abort", times=1)
    with pytest.raises(HostDied) as died:
        host.run(CODES)
    assert died.value.signal is signal.SIGABRT
    with Host(tmp_path, tpu.environment, runtime=host.runtime) as next_host:
        next_host.open(model)
        assert is_flat(next_host.run(CODES))


def test_frozen_is_listed_and_answers_when_it_thaws(tpu: Device, host: Host, model: Path) -> None:
    host.open(model)
    tpu.freeze()
    tpu.thaw()
    tpu.freeze()
    tpu.freeze()
    assert len(host.devices()) == 1
    host.start_run(CODES)
    assert not host.answers_within(A_WHILE_S)
    tpu.thaw()
    assert is_flat(host.finish_run())


@pytest.mark.parametrize("kind", ["open_hang", "invoke_hang"])
def test_killing_a_host_that_hangs_frees_the_device(
    tmp_path: Path, tpu: Device, host: Host, model: Path, kind: Kind
) -> None:
    tpu.fault(kind, times=1)
    host.start_open(model)
    if kind == "invoke_hang":
        host.finish_open()
        host.start_run(CODES)
    wait_for_the_fault(tpu)
    assert not host.answers_within(A_WHILE_S)
    host.kill()
    with Host(tmp_path, tpu.environment, runtime=host.runtime) as next_host:
        next_host.open(model)
        assert is_flat(next_host.run(CODES))


def test_slow_to_open(tpu: Device, host: Host, model: Path) -> None:
    tpu.fault("open_slow", seconds=A_WHILE_S)
    started_s = time.monotonic()
    host.open(model)
    assert time.monotonic() - started_s >= A_WHILE_S


def test_slow_to_invoke(tpu: Device, host: Host, model: Path) -> None:
    host.open(model)
    tpu.fault("invoke_slow", seconds=A_WHILE_S)
    started_s = time.monotonic()
    assert is_flat(host.run(CODES))
    assert time.monotonic() - started_s >= A_WHILE_S


def test_a_device_takes_its_own_time(tmp_path: Path, twin: Path, model: Path, runtime: str) -> None:
    with (
        device(tmp_path / "tpu", twin, build(), runtime=runtime, invoke_s=A_WHILE_S) as tpu,
        Host(tmp_path, tpu.environment, runtime=runtime) as host,
    ):
        host.open(model)
        started_s = time.monotonic()
        assert is_flat(host.run(CODES))
        assert time.monotonic() - started_s >= A_WHILE_S


def test_wrong_output(tpu: Device, host: Host, model: Path) -> None:
    host.open(model)
    tpu.fault("wrong_output", mask=0x01)
    (output,) = host.run(CODES)
    assert (output == FLAT ^ 1).all()
    tpu.heal()
    assert is_flat(host.run(CODES))


def test_a_library_too_old_for_the_runtime_crashes_its_host(
    tmp_path: Path, twin: Path, model: Path, runtime: str
) -> None:
    with (
        device(tmp_path / "tpu", twin, build(too_old=True), runtime=runtime) as tpu,
        Host(tmp_path, tpu.environment, runtime=runtime) as host,
    ):
        assert len(host.devices()) == 1
        with pytest.raises(HostDied) as died:
            host.open(model)
        assert died.value.signal in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)


def test_another_models_twin_is_an_error(tpu: Device, host: Host, tmp_path: Path) -> None:
    other = tmp_path / "other_edgetpu.tflite"
    other.write_bytes(compiled(tiny_models.reshape_model(shape=(1, 3, 3, 3))))
    host.open(other)
    with pytest.raises(HostError, match="27 bytes of input, 12 are right"):
        host.run(np.zeros((1, 3, 3, 3), np.int8))


def test_a_killed_test_run_leaves_no_device(tmp_path: Path, twin: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.standin.edgetpu import device\n"
        "with device(Path(sys.argv[1]), Path(sys.argv[2])) as tpu:\n"
        "    print(tpu.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tpu"), str(twin)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    while is_running(pid):
        pass


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # whoever inherits it may take its time to wait for it


def test_the_device_process_keeps_no_descriptors(tpu: Device, host: Host, model: Path) -> None:
    host.reopen(3, model)
    before = descriptors(tpu.pid)
    host.reopen(50, model)
    # It closes the last connection when it hears that the host has, which is a moment later.
    wait_until(lambda: descriptors(tpu.pid) <= before)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
