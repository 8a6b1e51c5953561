"""What is declared and what is locked agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "provisioning/requirements").glob("*.txt"))
DECLARED = {
    re.split(r"[^a-z0-9-]", requirement)[0]
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "dependencies"
    ]
}


def test_there_is_a_lock_for_every_platform_we_install_on() -> None:
    assert [lock.stem for lock in LOCKS] == [
        "cp311-aarch64",
        "cp311-x86_64",
        "cp313-aarch64",
        "cp313-x86_64",
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_pins_every_dependency_by_hash(lock: Path) -> None:
    entries = lock.read_text().replace("\\\n", " ").splitlines()
    names = {entry.split("==")[0] for entry in entries}
    assert names >= DECLARED
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry), entry


def test_debian_12_keeps_the_numpy_its_picamera2_was_compiled_for() -> None:
    for lock in LOCKS:
        assert ("\nnumpy==1." in lock.read_text()) == lock.stem.startswith("cp311")
