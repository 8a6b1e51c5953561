"""Which Edge TPUs there are, seen without opening one, and why one cannot be opened.

The kernel's own lists (`attached`) are safe to read anywhere. `ask_library` runs libedgetpu's code,
which may crash: that is for child processes only.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_app.errors import ConfigError, EngineError

LIBRARY = "libedgetpu.so.1"
# Before its first use a Coral shows the id of its boot loader; opening it uploads the firmware,
# and it comes back as a device of Google's.
_USB_IDS = {("1a6e", "089a"): False, ("18d1", "9302"): True}
_DEVICE = re.compile(r"|usb|pci|(usb|pci)?:\d+")
USB2_MBPS = 480


@dataclass(frozen=True, slots=True)
class EdgeTpu:
    """One device the kernel knows.

    `node` is what must be opened for it, `path` where the kernel describes it. `speed_mbps`: of the
    USB link as negotiated; None on PCIe. `ready`: its firmware is loaded. `usable`: this user may
    open it.
    """

    bus: Literal["usb", "pci"]
    path: str
    node: str
    speed_mbps: int | None
    ready: bool
    usable: bool


def check_device(device: str) -> str:
    """Return `device` in the form in which libedgetpu heeds the options that come with it.

    Options act only on a device named with its number, so "" becomes ":0", "usb" becomes "usb:0".
    Raises ConfigError for what libedgetpu does not take.
    """
    if not _DEVICE.fullmatch(device):
        raise ConfigError(
            f'model.device is {device!r}; allowed: "", "usb", "pci", ":N", "usb:N", "pci:N"',
            hint='"" takes the first Edge TPU there is',
        )
    return device if ":" in device else f"{device}:0"


def attached(sysfs_root: Path = Path("/sys"), dev_root: Path = Path("/dev")) -> tuple[EdgeTpu, ...]:
    """Return the Edge TPUs the kernel knows, opening none."""
    return (*_usb(sysfs_root, dev_root), *_pci(sysfs_root, dev_root))


def _usb(sysfs_root: Path, dev_root: Path) -> Sequence[EdgeTpu]:
    found = []
    for folder in sorted((sysfs_root / "bus/usb/devices").glob("*")):
        ready = _USB_IDS.get((_read(folder / "idVendor"), _read(folder / "idProduct")))
        bus, number = _number(folder / "busnum"), _number(folder / "devnum")
        if ready is None or bus is None or number is None:  # something else, or just unplugged
            continue
        node = dev_root / f"bus/usb/{bus:03d}/{number:03d}"
        speed_mbps = _number(folder / "speed")
        found.append(EdgeTpu("usb", str(folder), str(node), speed_mbps, ready, _usable(node)))
    return found


def _pci(sysfs_root: Path, dev_root: Path) -> Sequence[EdgeTpu]:
    return [
        EdgeTpu("pci", str(sysfs_root / "class/apex" / node.name), str(node), None, True, ok)
        for node in sorted(dev_root.glob("apex_*"))
        for ok in (_usable(node),)
    ]


def _usable(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdigit() else None


def explain(device: str, attached: Sequence[EdgeTpu], listed: Sequence[str]) -> tuple[str, str]:
    """Say why libedgetpu, which gives no reason itself, opened no device, and what to do.

    `attached` and `listed` as in `Survey`; the library may see more than the kernel shows us.
    """
    bus = device.partition(":")[0]
    ours = [tpu for tpu in attached if tpu.bus == (bus or tpu.bus)]
    if not ours and not any(line.startswith(bus) for line in listed):
        return (
            "no Edge TPU is attached",
            "plug it in, or check its cable and power; a Coral needs 900 mA at its peak",
        )
    if barred := [tpu.node for tpu in ours if not tpu.usable]:
        return (
            f"{', '.join(barred)}: permission denied",
            "install the udev rule for Edge TPUs and put this user into its group",
        )
    position = int(device.partition(":")[2] or 0)
    count = sum(line.startswith(bus) for line in listed) or len(ours)
    if position >= count:
        return (
            f'there is no "{device}": {count} Edge TPU attached',
            'count from 0, or set model.device = ""',
        )
    return (
        "an Edge TPU is attached but cannot be opened",
        "end the other program that uses it, or pull its plug and put it back",
    )


class _Listed(ctypes.Structure):
    """`struct edgetpu_device` of edgetpu_c.h."""

    _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))


def ask_library(library: str) -> tuple[str, tuple[str, ...]]:
    """Load the library; return its version and the devices it lists. Only for child processes.

    Raises EngineError when it cannot be loaded.
    """
    try:
        loaded = ctypes.CDLL(library)
        list_devices, free_devices = loaded.edgetpu_list_devices, loaded.edgetpu_free_devices
    except (OSError, AttributeError) as error:
        raise EngineError(f"{library} cannot be loaded: {error}") from error
    list_devices.restype = ctypes.POINTER(_Listed)
    list_devices.argtypes = [ctypes.POINTER(ctypes.c_size_t)]
    free_devices.restype, free_devices.argtypes = None, [ctypes.POINTER(_Listed)]
    count = ctypes.c_size_t()
    devices = list_devices(ctypes.byref(count))
    buses = ("pci", "usb")  # EDGETPU_APEX_PCI, EDGETPU_APEX_USB
    listed = tuple(
        f"{buses[devices[each].type]} {(devices[each].path or b'').decode(errors='replace')}"
        for each in range(count.value)
    )
    free_devices(devices)
    return _version(loaded), listed


def _version(loaded: ctypes.CDLL) -> str:
    try:
        version = loaded.edgetpu_version
    except AttributeError:
        return ""
    version.restype = ctypes.c_char_p
    return (version() or b"").decode(errors="replace")
