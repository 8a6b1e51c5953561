"""Readings into energy, and energy into the cost of an inference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.sensors.energy import Energy, EnergyMeter, PowerReport
from edge_app.sensors.power import Reading
from edge_app.stats import Power

WRAPS_UJ = 262_143_328_850


def watts(value: float, source: str = "ina226") -> Reading:
    return Reading(source, watts=value)


def count(uj: int, wraps_uj: int | None = WRAPS_UJ) -> Reading:
    return Reading("rapl-package-0", counter_uj=uj, wraps_uj=wraps_uj)


def total(*readings: tuple[float, Reading | None]) -> Energy:
    """Integrate readings, each with its second."""
    meter = EnergyMeter()
    energy = None
    for at_s, reading in readings:
        energy = meter.add(int(at_s * 1e9), reading)
    assert energy is not None
    return energy


def test_power_is_integrated_by_the_trapezoid() -> None:
    energy = total((0, watts(2.0)), (1, watts(4.0)), (3, watts(4.0)))
    assert energy == Energy("ina226", 3.0 + 8.0, 3.0, 4.0)


def test_a_counter_is_taken_at_its_word() -> None:
    energy = total((0, count(5_000_000)), (1, count(12_000_000)), (2, count(15_000_000)))
    assert energy == Energy("rapl-package-0", 10.0, 2.0, 3.0)


def test_a_counter_wraps_at_its_range() -> None:
    energy = total((0, count(WRAPS_UJ - 1_000_000)), (1, count(2_000_000)))
    assert energy.joules == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("before_uj", "after_uj", "wraps_uj"),
    [
        (100_000_000_000, 0, WRAPS_UJ),  # reset: as a wrap it would be 162 kJ in a second
        (5_000_000, 4_000_000, None),  # went back, and nobody says where it wraps
        (0, 2_000_000_000, WRAPS_UJ),  # 2 kW
    ],
)
def test_a_counter_that_jumped_measured_nothing(
    before_uj: int, after_uj: int, wraps_uj: int | None
) -> None:
    jumped = (0, count(before_uj, wraps_uj)), (1, count(after_uj, wraps_uj))
    assert total(*jumped) == Energy("rapl-package-0")
    energy = total(*jumped, (2, count(after_uj + 7_000_000, wraps_uj)))
    assert (energy.joules, energy.measured_s) == (7.0, 1.0)


def test_what_lies_in_a_gap_is_not_made_up() -> None:
    energy = total((0, watts(2.0)), (1, watts(2.0)), (2, None), (8, watts(2.0)), (9, watts(2.0)))
    assert (energy.joules, energy.measured_s) == (4.0, 2.0)


def test_one_reading_left_out_is_bridged() -> None:
    energy = total((0, watts(2.0)), (1, None), (2, watts(4.0)))
    assert (energy.joules, energy.measured_s) == (6.0, 2.0)


def test_another_source_starts_anew() -> None:
    energy = total((0, watts(2.0)), (1, watts(2.0)), (2, watts(9.0, "pmic-estimate")))
    assert energy == Energy("pmic-estimate", 0.0, 0.0, 9.0)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1000)), max_size=30))
def test_energy_only_grows(values: list[float | None]) -> None:
    meter = EnergyMeter()
    joules = 0.0
    for second, value in enumerate(values):
        energy = meter.add(second * 10**9, None if value is None else watts(value))
        if energy is not None:
            assert energy.joules >= joules
            assert energy.measured_s <= second
            joules = energy.joules


def test_one_window() -> None:
    report = PowerReport()
    report.read(Energy("ina226", 10.0, 4.0, 2.5), 10.0, 100)
    assert report.read(Energy("ina226", 41.0, 14.0, 3.3), 10.0, 200) == Power(
        watts=3.1,
        source="ina226",
        energy_j=31.0,
        energy_total_j=41.0,
        mj_per_inference=155.0,  # 3.1 W x 10 s / 200
    )


def test_nothing_measured() -> None:
    assert PowerReport().read(None, 10.0, 100) == Power()


def test_a_meter_that_fell_silent_reports_nothing_old() -> None:
    report = PowerReport()
    report.read(Energy("ina226", 10.0, 4.0, 2.5), 10.0, 100)
    assert report.read(Energy("ina226", 10.0, 4.0, None), 10.0, 100) == Power()


def test_part_of_a_window_has_a_power_but_no_energy() -> None:
    report = PowerReport()
    report.read(Energy("ina226", 0.0, 0.0, 2.0), 10.0, 100)
    power = report.read(Energy("ina226", 8.0, 4.0, 2.0), 10.0, 100)
    assert (power.watts, power.energy_j, power.mj_per_inference) == (2.0, None, None)


def test_a_window_shorter_than_the_readings_has_the_newest() -> None:
    report = PowerReport()
    before = Energy("ina226", 8.0, 4.0, 2.2)
    report.read(before, 0.5, 10)
    power = report.read(before, 0.5, 10)
    assert (power.watts, power.energy_j) == (2.2, None)


def windows(report: PowerReport, *of: tuple[float, int], window_s: float = 10.0) -> list[Power]:
    """Report on windows, each with its watts and inferences."""
    energy, powers = Energy("ina226"), []
    for mean_w, inferred in of:
        joules = energy.joules + mean_w * window_s
        energy = Energy("ina226", joules, energy.measured_s + window_s, mean_w)
        powers.append(report.read(energy, window_s, inferred))
    return powers


def test_above_idle_is_unknown_until_idle_was_measured() -> None:
    *_, last = windows(PowerReport(), (3.0, 100), (3.0, 100), (3.0, 100))
    assert (last.idle_watts, last.mj_per_inference_above_idle) == (None, None)
    assert last.mj_per_inference == 300.0


def test_idle_is_the_second_window_without_inference() -> None:
    first, second, _, last = windows(PowerReport(), (4.0, 0), (2.0, 0), (2.6, 1), (3.0, 100))
    assert first.idle_watts is None  # loading, or the tail of an inference
    assert second.idle_watts == 2.0
    assert second.mj_per_inference is None
    assert (last.mj_per_inference, last.mj_per_inference_above_idle) == (300.0, 100.0)


def test_idle_is_measured_again_and_forgotten_with_its_source() -> None:
    report = PowerReport()
    powers = windows(report, (2.0, 0), (2.0, 0), (3.0, 100), (2.4, 0), (2.5, 0), (3.0, 100))
    assert powers[-1].mj_per_inference_above_idle == 50.0
    power = report.read(Energy("pmic-estimate", 30.0, 10.0, 3.0), 10.0, 100)
    assert (power.source, power.idle_watts) == ("pmic-estimate", None)


def test_windows_too_short_make_no_baseline() -> None:
    *_, last = windows(PowerReport(), (2.0, 0), (2.0, 0), (2.0, 0), window_s=4.0)
    assert last.idle_watts is None


def test_below_idle_is_noise_not_a_gain() -> None:
    *_, last = windows(PowerReport(), (2.0, 0), (2.0, 0), (1.9, 100))
    assert (last.mj_per_inference, last.mj_per_inference_above_idle) == (190.0, None)
