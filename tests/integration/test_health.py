"""`edge-app health` beside a running appliance and a real broker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.brokers import Mosquitto
from tests.integration.test_appliance import appliance, write_config

PATIENCE_S = 100.0


def health(config: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "edge_app", "health", "--config", str(config), "--json"]
    done = subprocess.run(
        [*command, "--unit", "", *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def test_an_appliance_that_works_is_healthy_and_one_that_is_gone_is_not(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    config = write_config(tmp_path, port=mosquitto.port)
    baseline = tmp_path / "baseline.json"
    with appliance(config):
        code, report = health(config, "--baseline", str(baseline), "--seconds", "60")
        assert (code, report["faults"]) == (0, [])
        assert report["backend"] == "cpu"
        assert report["label"]
        assert list(json.loads(baseline.read_text()).values()) == [report["p95_ms"]]
    # What it said before is retained at the broker, and counts for nothing.
    code, report = health(config, "--seconds", "2")
    assert code == 69
    assert "no fresh result reached the broker" in report["faults"]


def test_a_broker_that_is_away_is_the_fault(mosquitto: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=mosquitto.port)
    mosquitto.kill()
    code, report = health(config, "--seconds", "1")
    assert code == 69
    assert f"broker 127.0.0.1:{mosquitto.port}" in report["faults"][0]
