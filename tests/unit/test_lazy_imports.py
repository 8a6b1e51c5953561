"""What a command imports: nothing that it does not use, since a Pi pays for each by the second."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "models" / "samples"
HEAVY = {"cv2", "paho", "ai_edge_litert", "tflite_runtime", "picamera2", "rich", "amqtt"}


def imported(*arguments: str) -> set[str]:
    """Run `edge-app` and return the top-level names of all it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edge_app", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)", done.stderr, re.MULTILINE)
    assert "argparse" in names
    return {name.split(".")[0] for name in names}


@pytest.fixture
def config(tmp_path: Path) -> str:
    """An appliance that looks at each sample photo once and prints what it saw."""
    path = tmp_path / "config.toml"
    path.write_text(f"[camera.main]\nsource = 'images:{SAMPLES}'\nfps = 0\nloop = false\n")
    return str(path)


def test_help_imports_the_standard_library_only() -> None:
    assert not imported("--help") & (HEAVY | {"numpy", "msgspec"})


def test_a_configuration_is_checked_without_the_appliance(config: str) -> None:
    names = imported("config", "check", "--config", config)
    assert "msgspec" in names
    assert not names & HEAVY


def test_the_appliance_imports_the_backends_it_was_told_to_use(config: str) -> None:
    names = imported("run", "--config", config)
    assert "cv2" in names
    assert not names & {"paho", "picamera2", "rich", "amqtt", "matplotlib"}
