"""Temperature, process and clock, on trees written after the kernel's documentation.

None was recorded on a real device.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edge_app.sensors.clock import read_clock, timesyncd_says
from edge_app.sensors.process import ProcessMeter
from edge_app.sensors.thermal import read_thermal


def zone(root: Path, number: int, kind: str, temp: str) -> Path:
    folder = root / "class/thermal" / f"thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(kind)
    (folder / "temp").write_text(temp)
    return folder


def test_a_pi(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal\n", "51218\n")
    assert read_thermal(tmp_path).soc == 51.218
    assert read_thermal(tmp_path).tpu is None


def test_the_soc_is_chosen_among_other_zones(tmp_path: Path) -> None:
    zone(tmp_path, 0, "acpitz\n", "27800\n")
    zone(tmp_path, 1, "iwlwifi_1\n", "60000\n")
    zone(tmp_path, 2, "x86_pkg_temp\n", "44000\n")
    assert read_thermal(tmp_path).soc == 44.0


def test_no_sensor(tmp_path: Path) -> None:
    assert read_thermal(tmp_path).soc is None
    zone(tmp_path, 0, "battery\n", "30000\n")
    assert read_thermal(tmp_path).soc is None


@pytest.mark.parametrize(
    "temp", ["", "warm\n", "51.2\n", "999999999\n", "-274000\n", "9" * 5000, "\0", "nan"]
)
def test_a_reading_that_makes_no_sense_is_unknown(tmp_path: Path, temp: str) -> None:
    zone(tmp_path, 0, "cpu-thermal\n", temp)
    assert read_thermal(tmp_path).soc is None


def test_broken_zones_hide_no_good_one(tmp_path: Path) -> None:
    (zone(tmp_path, 0, "cpu-thermal", "1") / "temp").unlink()
    (zone(tmp_path, 1, "cpu-thermal", "1") / "type").write_bytes(b"\xff\xfe")
    folder = zone(tmp_path, 2, "cpu-thermal", "1")
    (folder / "temp").unlink()
    (folder / "temp").mkdir()
    (tmp_path / "class/thermal/thermal_zone3").write_text("a file")
    (tmp_path / "class/thermal/thermal_zone4").symlink_to("thermal_zone4")
    zone(tmp_path, 5, "cpu-thermal\n", "40000\n")
    assert read_thermal(tmp_path).soc == 40.0


def test_what_this_process_takes() -> None:
    use = ProcessMeter().read()
    assert use.rss_mb is not None
    assert 5 < use.rss_mb < 5000
    assert use.cpu_percent is not None
    assert use.cpu_percent >= 0


@pytest.mark.parametrize("statm", [None, "", "100", "100 many 3"])
def test_memory_that_cannot_be_read_is_unknown(tmp_path: Path, statm: str | None) -> None:
    if statm is not None:
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "statm").write_text(statm)
    assert ProcessMeter(tmp_path).read().rss_mb is None


def test_memory_counts_pages(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "statm").write_text("99999 25000 1 1 0 1 0\n")
    rss_mb = ProcessMeter(tmp_path).read().rss_mb
    assert rss_mb in (102.4, 409.6, 1638.4)  # pages of 4, 16 or 64 KiB


def test_timesyncd_tells_where_the_kernel_may_not_be_asked(tmp_path: Path) -> None:
    marker = tmp_path / "timesync/synchronized"
    assert timesyncd_says(marker) is None  # it does not run
    marker.parent.mkdir()
    assert timesyncd_says(marker) is False  # not yet
    marker.touch()
    assert timesyncd_says(marker) is True
    hours_ago_s = time.time() - 10 * 3600
    os.utime(marker, (hours_ago_s, hours_ago_s))
    assert timesyncd_says(marker) is False  # the kernel would no longer trust it either


def test_the_clock_turns_monotonic_time_into_utc() -> None:
    clock = read_clock()
    utc_ns = time.monotonic_ns() + clock.utc_minus_monotonic_ns
    assert abs(utc_ns - time.time_ns()) < 1e9
    assert clock.synced in (True, False, None)
