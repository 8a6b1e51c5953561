"""Temperatures the kernel reports."""

from __future__ import annotations

from pathlib import Path

from edge_app.sensors.sysfs import numbered, read_line, read_number
from edge_app.stats import Thermal

_SOC_ZONES = ("cpu-thermal", "cpu_thermal", "soc-thermal", "x86_pkg_temp", "acpitz")


def read_thermal(sysfs_root: Path = Path("/sys")) -> Thermal:
    """Read the SoC's thermal zone and the hottest PCIe Edge TPU.

    None for what cannot be read or makes no sense. A USB Edge TPU tells no temperature.
    """
    zones: dict[str, float] = {}
    for zone in numbered(sysfs_root / "class/thermal", "thermal_zone*"):
        celsius = _celsius(zone / "temp")
        if celsius is not None:
            zones.setdefault(read_line(zone / "type") or "", celsius)
    soc = next((zones[kind] for kind in _SOC_ZONES if kind in zones), None)
    readings = [_celsius(tpu / "temp") for tpu in numbered(sysfs_root / "class/apex", "apex_*")]
    return Thermal(soc, max((each for each in readings if each is not None), default=None))


def _celsius(path: Path) -> float | None:
    milli_c = read_number(path, low=-50_000, high=200_000)
    return None if milli_c is None else milli_c / 1000
