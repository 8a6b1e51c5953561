"""The files in systemd/, judged by the systemd of this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = sorted([*FOLDER.glob("*.service"), *FOLDER.glob("*.path")])
MOST_EXPOSED = {"edge-app.service": 1.5, "edge-app-usb-reset.service": 1.9}

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is missing: the units are NOT checked (apt install systemd)",
)


def analyze(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", [u for u in UNITS if u.suffix == ".service"], ids=lambda u: u.name)
def test_a_service_is_exposed_to_little(unit: Path) -> None:
    said = analyze("security", "--offline=true", "--no-pager", unit)
    found = re.search(rf"exposure level for {unit.name}: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= MOST_EXPOSED[unit.name], said


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_every_line(unit: Path, tmp_path: Path) -> None:
    # What is run is not installed here: anything that can be executed stands for it.
    for each in UNITS:
        text = each.read_text().replace("/opt/edge-app/current/bin/", "/bin/true ")
        (tmp_path / each.name).write_text(text)
    assert analyze("verify", "--man=no", tmp_path / unit.name) == ""


@needs_systemd
def test_the_check_of_lines_can_fail(tmp_path: Path) -> None:
    unit = tmp_path / "edge-app.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nMemoryMaks=1M\n")
    assert "MemoryMaks" in analyze("verify", "--man=no", unit)


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_service_needs_no_newer_systemd_than_debian_12_has() -> None:
    newer = {"RestartSteps", "RestartMaxDelaySec", "ReloadSignal", "ImportCredential"}
    newer |= {"MemoryZSwapWriteback", "NFTSet", "RestartMode", "PrivatePIDs"}
    for unit in UNITS:
        assert not settings(unit).keys() & newer, unit
    assert settings(FOLDER / "edge-app.service")["Type"] == ["notify"]


def test_every_credential_may_be_missing() -> None:
    found = settings(FOLDER / "edge-app.service")
    loaded = {value.partition(":")[0] for value in found["LoadCredential"]}
    assert loaded == {value.partition(":")[0] for value in found["SetCredential"]}


def test_the_rules_name_both_ids_of_a_coral() -> None:
    rules = (FOLDER / "60-edge-app.rules").read_text()
    pairs = set(re.findall(r'ATTR\{idVendor\}=="(\w+)", ATTR\{idProduct\}=="(\w+)"', rules))
    assert pairs == {("1a6e", "089a"), ("18d1", "9302")}


def test_every_group_of_the_service_is_made() -> None:
    made = set(re.findall(r"^[gu] (\S+)", (FOLDER / "edge-app.sysusers.conf").read_text(), re.M))
    found = settings(FOLDER / "edge-app.service")
    assert made >= {*found["SupplementaryGroups"][0].split(), *found["User"]}
