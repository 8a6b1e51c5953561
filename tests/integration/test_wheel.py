"""The wheel in an empty environment, outside the repository."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (built,) = folder.glob("edge_app-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel and the demo's broker into an empty environment; return its bin folder."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/pip"), "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{wheel}[demo]"], check=True)
    return folder / "bin"


def test_it_carries_what_it_needs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "edge_app/models/catalog.toml",
        "edge_app/models/imagenet_labels.txt",
        "edge_app/models/mobilenet_v2_1.0_224.tflite",
        "edge_app/models/samples/manifest.toml",
        "edge_app/models/samples/cat.jpg",
        "edge_app/models/licences/torchvision.txt",
        "edge_app/models/builder/network.py",
    ):
        assert wanted in names
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2, tops  # the package and its metadata
    assert not [name for name in names if name.endswith((".pyc", ".pyo")) or "/tests/" in name]


def test_the_demo_runs_and_ends_by_itself(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "edge-app", "demo", "--seconds", "5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("triumphal arch" in line for line in lines), done
    assert all("backend=cpu" in line for line in lines)
    noise = [line for line in done.stderr.splitlines() if "mosquitto_sub" not in line]
    assert noise == ["starting the broker and the appliance ..."]


def test_classify_finds_model_labels_and_photos(installed: Path, tmp_path: Path) -> None:
    samples = next(installed.parent.glob("lib/python*/site-packages/edge_app/models/samples"))
    done = subprocess.run(
        [installed / "edge-app", "classify", samples / "espresso.jpg", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["labels"][0]["label"] == "espresso"
    assert done.stderr == ""
