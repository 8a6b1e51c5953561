"""Energy of an inference, from whatever the machine has to measure it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_app.sensors.power import PowerSensor
from edge_app.tools.bench_models import energy_counter


def test_energy_is_what_a_counter_gained(tmp_path: Path) -> None:
    meter = tmp_path / "class/hwmon/hwmon0"
    meter.mkdir(parents=True)
    (meter / "name").write_text("ina228\n")
    (meter / "energy1_input").write_text("41000000\n")  # microjoules
    (meter / "power1_input").write_text("3000000\n")
    read_j = energy_counter(PowerSensor("auto", tmp_path, "no-such-vcgencmd"))
    before_j = read_j()
    (meter / "energy1_input").write_text("41000250\n")
    after_j = read_j()
    assert before_j is not None
    assert after_j is not None
    assert after_j - before_j == pytest.approx(250e-6)


def test_without_a_meter_energy_is_not_known(tmp_path: Path) -> None:
    assert energy_counter(PowerSensor("auto", tmp_path, "no-such-vcgencmd"))() is None
