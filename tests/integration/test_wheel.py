"""The wheel in an empty environment, outside the repository."""

from __future__ import annotations

import email
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import edge_app

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


def test_it_carries_the_package_and_the_models_whole_and_nothing_else(wheel: Path) -> None:
    ours = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "edge_app", "models")
    listed = subprocess.run(ours, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {name for name in listed.splitlines() if (ROOT / name).is_file()}
    expected = {re.sub("^models/", "edge_app/models/", name) for name in files}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {
        "edge_app/models/catalog.toml",
        "edge_app/models/imagenet_labels.txt",
        "edge_app/models/mobilenet_v2_1.0_224.tflite",
        "edge_app/models/samples/manifest.toml",
        "edge_app/models/builder/network.py",
    } <= names


def test_its_metadata_says_what_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(path))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = metadata.get_all("Requires-Dist", [])
    assert metadata["Version"] == edge_app.__version__
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["License-Expression"] == project["license"]
    assert {name for name in required if "extra ==" not in name} == set(project["dependencies"])


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


def test_models_list_knows_the_model_it_brought(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "edge-app", "models", "list", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    models = {model["name"]: model for model in map(json.loads, done.stdout.splitlines())}
    ours = models["mobilenet_v2_1.0_224"]
    assert (ours["installed"], ours["verified"], ours["faults"]) == (True, True, [])
