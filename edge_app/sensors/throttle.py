"""Why a Raspberry Pi runs slower than it could."""

from __future__ import annotations

import re
from pathlib import Path

from edge_app.domain import Event
from edge_app.sensors.sysfs import numbered, read_line, read_number
from edge_app.sensors.vcgencmd import Vcgencmd
from edge_app.stats import Throttled

# Bit n: it is so now; bit 16 + n: it was so since boot. (Raspberry Pi documentation, `vcgencmd`.)
CONDITIONS = ("under_voltage", "arm_capped", "throttled", "soft_temp_limit")
_STICKY_SHIFT = 16
_QUIET_S = 60.0  # without any condition, before an episode is over: a weak supply comes and goes


class ThrottleSensor:
    """The firmware's word; without it the kernel's, which knows of under-voltage alone."""

    def __init__(self, firmware: Vcgencmd, sysfs_root: Path = Path("/sys")) -> None:
        self._firmware = firmware
        self._sysfs_root = sysfs_root

    def read(self) -> Throttled:
        """Say what holds now and what held since boot, each None when nothing can tell."""
        answer = self._firmware.ask()
        found = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})\s*", answer or "")
        if found is None:
            return self._by_kernel()
        bits = int(found[1], 16)
        return Throttled(_names(bits), _names(bits >> _STICKY_SHIFT), CONDITIONS)

    def _by_kernel(self) -> Throttled:
        for chip in numbered(self._sysfs_root / "class/hwmon", "hwmon*"):
            if read_line(chip / "name") == "rpi_volt":
                alarm = read_number(chip / "in0_lcrit_alarm", low=0, high=1)
                if alarm is not None:
                    return Throttled(_names(alarm), None, CONDITIONS[:1])
        return Throttled()


class Episodes:
    """Tells when throttling begins, gets worse and is over; not every time that it flickers."""

    def __init__(self) -> None:
        self._told: frozenset[str] = frozenset()
        self._seen_s = 0.0

    def note(self, throttled: Throttled, now_s: float) -> Event | None:
        """Take note of what holds at `now_s` (monotonic); return what is worth telling, if any."""
        if throttled.now is None:
            return None
        now = frozenset(throttled.now)
        if now:
            self._seen_s = now_s
        if now - self._told:
            self._told |= now
            names = ", ".join(sorted(self._told))
            details = {"conditions": names}
            return Event("throttled", f"the processor is held back: {names}", details)
        if self._told and not now and now_s - self._seen_s >= _QUIET_S:
            self._told = frozenset()
            return Event("throttled_over", f"nothing holds the processor back for {_QUIET_S:.0f} s")
        return None


def _names(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in enumerate(CONDITIONS) if bits >> bit & 1)
