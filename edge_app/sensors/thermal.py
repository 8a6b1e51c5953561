"""Temperatures the kernel reports."""

from __future__ import annotations

from pathlib import Path

from edge_app.domain import Thermal

_SOC_ZONES = ("cpu-thermal", "cpu_thermal", "soc-thermal", "x86_pkg_temp", "acpitz")


def read_thermal(sysfs_root: Path = Path("/sys")) -> Thermal:
    """Read the SoC's thermal zone; None for what cannot be read or makes no sense."""
    zones: dict[str, float] = {}
    for zone in sorted((sysfs_root / "class/thermal").glob("thermal_zone*")):
        try:
            milli_c = int((zone / "temp").read_text())
            kind = (zone / "type").read_text().strip()
        except (OSError, ValueError):
            continue
        if -50_000 < milli_c < 200_000:
            zones.setdefault(kind, milli_c / 1000)
    soc = next((zones[kind] for kind in _SOC_ZONES if kind in zones), None)
    return Thermal(soc=soc)
