"""Edge TPUs in recorded trees of /sys and /dev, and why one cannot be opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_app.engine.devices import EdgeTpu, attached, check_device, explain
from edge_app.engine.survey import find_pycoral, survey
from edge_app.errors import ConfigError


class Machine:
    """A machine's /sys and /dev under a folder."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.dev = root / "sys", root / "dev"
        (self.sysfs / "bus/usb/devices").mkdir(parents=True)
        self.dev.mkdir()

    def plug_in(
        self, port: str, ids: str = "18d1:9302", speed: str = "5000", number: int = 4
    ) -> Path:
        """Add a USB device; return its node."""
        folder = self.sysfs / "bus/usb/devices" / port
        folder.mkdir()
        vendor, product = ids.split(":")
        bus = port.split("-", maxsplit=1)[0]
        values = {"idVendor": vendor, "idProduct": product, "speed": speed, "busnum": bus}
        for name, value in (values | {"devnum": str(number)}).items():
            (folder / name).write_text(f"{value}\n")
        node = self.dev / f"bus/usb/{int(bus):03d}/{number:03d}"
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        return node

    def list(self) -> tuple[EdgeTpu, ...]:
        return attached(self.sysfs, self.dev)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_usb(tmp_path: Path) -> None:
    assert attached(tmp_path / "sys", tmp_path / "dev") == ()


def test_a_coral_that_was_used(machine: Machine) -> None:
    node = machine.plug_in("2-1")
    (tpu,) = machine.list()
    assert (tpu.bus, tpu.node, tpu.speed_mbps, tpu.ready) == ("usb", str(node), 5000, True)
    assert tpu.usable


def test_a_coral_before_its_firmware_on_usb_2(machine: Machine) -> None:
    machine.plug_in("1-1.3", ids="1a6e:089a", speed="480")
    (tpu,) = machine.list()
    assert (tpu.speed_mbps, tpu.ready) == (480, False)


def test_other_devices_are_left_out(machine: Machine) -> None:
    machine.plug_in("1-1", ids="1d6b:0002")
    machine.plug_in("1-2", ids="18d1:4ee7", number=5)  # a telephone of Google's
    interface = machine.sysfs / "bus/usb/devices/1-2:1.0"
    interface.mkdir()
    assert machine.list() == ()


def test_one_that_is_being_unplugged(machine: Machine) -> None:
    machine.plug_in("2-1")
    (machine.sysfs / "bus/usb/devices/2-1/devnum").unlink()
    assert machine.list() == ()


def test_a_speed_that_makes_no_sense(machine: Machine) -> None:
    machine.plug_in("2-1", speed="1.5")
    assert machine.list()[0].speed_mbps is None


def test_pcie(machine: Machine) -> None:
    (machine.dev / "apex_0").touch()
    (tpu,) = machine.list()
    assert (tpu.bus, tpu.node, tpu.speed_mbps) == ("pci", str(machine.dev / "apex_0"), None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_one_this_user_may_not_open(machine: Machine) -> None:
    machine.plug_in("2-1").chmod(0)
    assert not machine.list()[0].usable


@pytest.mark.parametrize(
    ("device", "becomes"),
    [("", ":0"), ("usb", "usb:0"), ("pci", "pci:0"), (":1", ":1"), ("usb:12", "usb:12")],
)
def test_device_strings(device: str, becomes: str) -> None:
    assert check_device(device) == becomes


@pytest.mark.parametrize("device", ["usb0", "USB:0", "pci:", "usb:-1", "/dev/apex_0", "usb:0\n"])
def test_other_device_strings_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        check_device(device)


USB = EdgeTpu("usb", "/sys/x", "/dev/bus/usb/002/004", 5000, True, True)
BARRED = EdgeTpu("usb", "/sys/x", "/dev/bus/usb/002/004", 5000, True, False)


@pytest.mark.parametrize(
    ("device", "seen", "listed", "cause"),
    [
        (":0", (), (), "no Edge TPU is attached"),
        ("pci:0", (USB,), ("usb /sys/x",), "no Edge TPU is attached"),
        (":0", (BARRED,), (), "/dev/bus/usb/002/004: permission denied"),
        ("usb:1", (USB,), ("usb /sys/x",), 'there is no "usb:1": 1 Edge TPU attached'),
        ("usb:0", (USB,), ("usb /sys/x",), "attached but cannot be opened"),
        (":0", (), ("usb /sys/x",), "attached but cannot be opened"),
    ],
)
def test_each_cause_has_its_cure(
    device: str, seen: tuple[EdgeTpu, ...], listed: tuple[str, ...], cause: str
) -> None:
    message, hint = explain(device, seen, listed)
    assert cause in message
    assert hint


def package(root: Path, *, genuine: bool, version: str) -> list[str]:
    """Make a pycoral; return the search path that holds it."""
    (root / "pycoral").mkdir()
    (root / "pycoral/__init__.py").write_text("raise RuntimeError('imported')\n")
    if genuine:
        (root / "pycoral/utils").mkdir()
        (root / "pycoral/utils/edgetpu.py").touch()
    info = root / f"pycoral-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pycoral\nVersion: {version}\n")
    return [str(root)]


@pytest.mark.parametrize("genuine", [True, False])
def test_pycoral_is_told_from_its_namesake_without_importing_it(
    tmp_path: Path, genuine: bool
) -> None:
    found = find_pycoral(package(tmp_path, genuine=genuine, version="2.0.0"))
    assert found is not None
    assert (found.genuine, found.version) == (genuine, "2.0.0")


def test_no_pycoral(tmp_path: Path) -> None:
    assert find_pycoral([str(tmp_path), str(tmp_path / "absent.zip")]) is None


def test_the_genuine_pycoral_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, genuine=True, version="2.0.0")
    (tmp_path / "pycoral/__init__.py").write_text("")
    (tmp_path / "pycoral/utils/edgetpu.py").write_text(
        "def list_edge_tpus(): return [{'type': 'usb', 'path': '/sys/bus/usb/devices/2-1'}]\n"
        "def get_runtime_version(): return 'BuildLabel(x), RuntimeVersion(14)'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = survey("no-such-library.so").pycoral
    assert found is not None
    assert found.devices == ("usb /sys/bus/usb/devices/2-1",)
    assert found.runtime == "BuildLabel(x), RuntimeVersion(14)"


def test_a_pycoral_that_crashes_takes_nobody_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, genuine=True, version="2.0.0")
    (tmp_path / "pycoral/__init__.py").write_text("import os; os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "crashed when asked for its devices (SIGABRT)" in survey("no-such-library.so").problem
