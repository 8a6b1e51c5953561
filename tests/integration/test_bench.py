"""`edge-app bench`: the report is whole and every figure was measured. How fast is not tested."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from typing import Any

import pytest

from edge_app.cli import main
from edge_app.errors import EXIT_USAGE
from edge_app.tools import bench as bench_tool
from edge_app.tools import bench_rig

ZERO_IS_GOOD = ("written to disk", "memory growth")
NEEDS_BROKER = {
    "labels / bare",
    "engine busy",
    "added latency p50",
    "added latency p99",
    "first result",
    "memory",
    "spooled",
    "replayed",
    "replayed / online",
    "disk, offline",
    "disk, online",
}


def bench() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "edge_app", "bench", "--seconds", "1", "--json"],
        capture_output=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout)  # nothing else is on stdout
    return report


def expected_verdicts(name: str, figure: dict[str, Any]) -> set[str]:
    """What the figure's own value and target lead to."""
    if not figure["target"]:
        return {""}
    if name == "labels / bare" and figure["value"] > 1:
        return {"not valid"}
    sign, bound = figure["target"].split()
    reached = {"<=": operator.le, ">=": operator.ge}[sign](figure["value"], float(bound))
    return {"met" if reached else "missed"}


@pytest.mark.slow
def test_every_figure_is_measured_and_says_what_it_means() -> None:
    figures = {figure["name"]: figure for figure in bench()["figures"]}
    assert NEEDS_BROKER | {"bare", "labels", "script / bare", "invoke, litert"} <= figures.keys()
    for name, figure in figures.items():
        assert figure["meaning"]
        assert figure["value"] > 0 or name in ZERO_IS_GOOD
        assert figure["verdict"] in expected_verdicts(name, figure)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--plot", "x.png"], "--models"),
        (["--models", "mobilenet_v1_0.25_128", "--seconds", "3"], "--seconds"),
        (["--models", ""], "--models"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == EXIT_USAGE
    assert told in capsys.readouterr().err


def test_without_a_broker_the_bare_model_is_still_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_rig, "PROGRAM", "no-such-mosquitto")
    assert bench_tool.run(seconds=0.1, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert any("apt install mosquitto" in note for note in report["notes"])
    names = {figure["name"] for figure in report["figures"]}
    assert "invoke, litert" in names
    assert not NEEDS_BROKER & names
