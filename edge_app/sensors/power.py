"""What measures electrical power on this machine, and which of them to believe.

docs/power.md says what each source sees and what it does not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from edge_app.sensors.sysfs import numbered, read_line, read_number
from edge_app.sensors.vcgencmd import Vcgencmd

log = logging.getLogger(__name__)

Choice = Literal["auto", "ina2xx", "poe", "pmic", "hwmon", "rapl", "none"]
# Best first: what measures the whole input, what sees most of it, what sees the processor alone.
_AUTO: tuple[Choice, ...] = ("ina2xx", "poe", "pmic", "hwmon", "rapl")

MAX_W = 1000  # more is not a reading: no machine this runs on takes it
_MAX_UW = MAX_W * 1_000_000
_MAX_COUNT = 2**64 - 1
# Graphics cards and batteries tell their own power, not the machine's.
_NOT_THE_MACHINE = re.compile(r"amdgpu|radeon|nouveau|i915|xe|BAT\d*")
_POE_V = 5.0  # what the HAT puts out; it measures the current alone
_POE_MAX_UA = 6_000_000
_PMIC_RAILS = 12
# A published fit of the rails' sum to a meter on the 5 V input: watts = 1.1451 * sum + 0.5879.
_PMIC_SLOPE, _PMIC_OFFSET_W = 1.1451, 0.5879
_PMIC_MAX_W = 60
_PMIC_LINE = re.compile(r"\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=(\d{1,3}\.\d{1,12})[AV]\s*")
RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What `source` said: either its power now, or an energy counter that wraps after `wraps_uj`.

    `wraps_uj` None: where it wraps is not known.
    """

    source: str
    watts: float | None = None
    counter_uj: int | None = None
    wraps_uj: int | None = None


Read = Callable[[], Reading | None]


class PowerSensor:
    """The configured source, or the best one that answers. What fails is tried again."""

    def __init__(
        self,
        choice: Choice,
        sysfs_root: Path = Path("/sys"),
        vcgencmd: str = "vcgencmd",
        retry_s: float = RETRY_S,
    ) -> None:
        self._choice = choice
        self._sysfs_root = sysfs_root
        self._firmware = Vcgencmd("pmic_read_adc", vcgencmd, retry_s)
        self._retry_s = retry_s
        self._read: Read | None = None
        self._search_s = 0.0  # monotonic; when to look for a source (again)
        self._told = ""

    def read(self, now_s: float) -> Reading | None:
        """Return a reading at `now_s` (monotonic); None when nothing that makes sense came.

        A source that answered once is given up for another only after `retry_s` without a reading.
        """
        reading = self._read() if self._read is not None else None
        if reading is None and now_s >= self._search_s:
            reading = self._search()
            self._search_s = now_s + self._retry_s
            # No meter is no news, unless one was asked for, or was there.
            if reading is None and (self._told or self._choice not in ("auto", "none")):
                self._tell(f'power: nothing measures it (power.source = "{self._choice}")')
        if reading is not None:
            self._search_s = now_s + self._retry_s
            self._tell(f"power: measured by {reading.source}")
        return reading

    def _search(self) -> Reading | None:
        for read in self._candidates():
            reading = read()
            if reading is not None:
                self._read = read
                return reading
        return None

    def _candidates(self) -> Iterator[Read]:
        for choice in _AUTO if self._choice == "auto" else (self._choice,):
            if choice == "ina2xx":
                yield from _ina2xx(self._sysfs_root)
            elif choice == "poe":
                yield from _poe(self._sysfs_root)
            elif choice == "pmic":
                yield partial(_pmic, self._firmware)
            elif choice == "hwmon":
                yield from _hwmon(self._sysfs_root, whole_only=self._choice == "auto")
            elif choice == "rapl":
                yield from _rapl(self._sysfs_root)

    def _tell(self, text: str) -> None:
        if text != self._told:
            log.info("%s", text)
        self._told = text


def _ina2xx(sysfs_root: Path) -> Iterator[Read]:
    """Texas Instruments' meters on I2C; attributes as in the kernel's hwmon/sysfs-interface."""
    for chip in numbered(sysfs_root / "class/hwmon", "hwmon*"):
        name = read_line(chip / "name") or ""
        if name.startswith("ina"):
            yield partial(_counted, name, chip / "energy1_input", None)
            yield partial(_metered, name, chip / "power1_input")
            yield partial(_volts_by_amperes, name, chip)


def _hwmon(sysfs_root: Path, *, whole_only: bool) -> Iterator[Read]:
    """Any chip that tells a power; `whole_only`: none that is known to tell only a part's."""
    for chip in numbered(sysfs_root / "class/hwmon", "hwmon*"):
        name = read_line(chip / "name")
        if name and not (whole_only and _NOT_THE_MACHINE.fullmatch(name)):
            for power in numbered(chip, "power*_input"):
                yield partial(_metered, name, power)


def _metered(name: str, path: Path) -> Reading | None:
    return _measured(name, read_number(path, low=0, high=_MAX_UW), 1e-6)


def _volts_by_amperes(name: str, chip: Path) -> Reading | None:
    volts_m = read_number(chip / "in1_input", low=0, high=100_000)
    amperes_m = read_number(chip / "curr1_input", low=0, high=100_000)
    if volts_m is None or amperes_m is None:
        return None
    return _measured(name, volts_m * amperes_m, 1e-6)


def _poe(sysfs_root: Path) -> Iterator[Read]:
    for supply in numbered(sysfs_root / "class/power_supply", "rpi-poe*"):
        yield partial(_poe_supply, supply)


def _poe_supply(supply: Path) -> Reading | None:
    """The PoE+ HAT's kernel driver; `online` is 0 when the Pi is fed by its USB socket."""
    if read_number(supply / "online", low=1, high=1) is None:
        return None
    microamperes = read_number(supply / "current_now", low=1, high=_POE_MAX_UA)
    return _measured("poe-estimate", microamperes, _POE_V / 1e6)


def _pmic(firmware: Vcgencmd) -> Reading | None:
    """A Pi 5's power chip: the sum over its rails, turned into an estimate of the input."""
    rails: dict[str, dict[str, float]] = {}
    for line in (firmware.ask() or "").splitlines():
        found = _PMIC_LINE.fullmatch(line)
        if found is not None:
            rails.setdefault(found[1], {})[found[2]] = float(found[3])
    whole = [rail for rail in rails.values() if len(rail) == 2]  # two lines tell a voltage alone
    if len(whole) != _PMIC_RAILS:  # the fit holds for these twelve
        return None
    rails_w = sum(rail["A"] * rail["V"] for rail in whole)
    if not 0 < rails_w <= _PMIC_MAX_W:
        return None
    return Reading("pmic-estimate", _PMIC_SLOPE * rails_w + _PMIC_OFFSET_W)


def _rapl(sysfs_root: Path) -> Iterator[Read]:
    """The first processor package; its counter can be read by root alone."""
    for zone in numbered(sysfs_root / "class/powercap", "intel-rapl:*"):
        name = read_line(zone / "name") or ""
        if re.fullmatch(r"package-\d+", name):
            wraps_uj = read_number(zone / "max_energy_range_uj", low=1, high=_MAX_COUNT)
            yield partial(_counted, f"rapl-{name}", zone / "energy_uj", wraps_uj)


def _measured(source: str, value: int | None, watts_per_unit: float) -> Reading | None:
    if value is None or value * watts_per_unit > MAX_W:
        return None
    return Reading(source, watts=value * watts_per_unit)


def _counted(source: str, path: Path, wraps_uj: int | None) -> Reading | None:
    counter_uj = read_number(path, low=0, high=_MAX_COUNT)
    if counter_uj is None:
        return None
    return Reading(source, counter_uj=counter_uj, wraps_uj=wraps_uj)
