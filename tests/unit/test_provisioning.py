"""The pure parts of provisioning: the configuration as TOML, the bundle, the report's table."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PROVISIONING = Path(__file__).parents[2] / "provisioning"


def load(path: str) -> ModuleType:
    """Import a file that is no part of a package; Ansible finds it by its folder."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, PROVISIONING / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


to_toml = load("filter_plugins/to_toml.py").to_toml
bundle = load("bundle.py")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The report's module, with nothing in Ansible's place but a base class."""
    base = ModuleType("ansible.plugins.callback")
    base.CallbackBase = object  # type: ignore[attr-defined]
    for name in ("ansible", "ansible.plugins"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    return load("callback_plugins/fleet_report.py")


TEXT = st.text()
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
)
TABLES = st.recursive(
    st.one_of(SCALARS, st.lists(SCALARS, max_size=3)),
    lambda inner: st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.dictionaries(TEXT, TABLES, max_size=4))
def test_a_dictionary_comes_back_from_toml_as_it_was(table: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(table)) == table


def test_the_configuration_looks_like_one_written_by_hand() -> None:
    assert to_toml(
        {"camera": {"main": {"source": "picamera:0", "size_px": [640, 480]}}, "model": {"top_k": 3}}
    ) == ('[camera.main]\nsource = "picamera:0"\nsize_px = [640, 480]\n\n[model]\ntop_k = 3\n')


@pytest.mark.parametrize("value", [None, float("nan"), [None], [{"a": 1}]])
def test_what_toml_cannot_say_is_refused_with_its_key(value: object) -> None:
    with pytest.raises(ValueError, match=r"camera\.main\.fps: found "):
        to_toml({"camera": {"main": {"fps": value}}})


def test_every_lock_file_has_its_download() -> None:
    assert bundle.platforms() == ["cp311-aarch64", "cp311-x86_64", "cp313-aarch64", "cp313-x86_64"]
    command = bundle.download_command("cp311-aarch64", Path("/tmp/wheels"))  # noqa: S108
    assert "--require-hashes" in command
    assert command[command.index("--python-version") + 1] == "311"
    assert "manylinux_2_28_aarch64" in command
    assert not [word for word in command if "x86_64" in word]


def test_a_bundle_that_was_changed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    wheel = tmp_path / "wheels" / "a b.whl"
    wheel.write_bytes(b"wheel")
    (tmp_path / bundle.SUMS).write_text(bundle.sums(tmp_path))
    check = ["sha256sum", "--check", "--strict", "--quiet", bundle.SUMS]  # as the playbooks do
    assert subprocess.run(check, cwd=tmp_path, check=False).returncode == 0
    wheel.write_bytes(b"whee!")
    assert subprocess.run(check, cwd=tmp_path, check=False, capture_output=True).returncode != 0


def test_a_packed_folder_is_one_file_and_always_the_same(tmp_path: Path) -> None:
    for place in ("here", "there"):
        folder = tmp_path / place / "cp313-x86_64"
        folder.mkdir(parents=True)
        for name in ("b.whl", "a.whl") if place == "here" else ("a.whl", "b.whl"):
            (folder / name).write_text(name)
        bundle.pack(folder)
        assert not folder.exists()
    here, there = (tmp_path / place / "cp313-x86_64.tar" for place in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()
    subprocess.run(["tar", "-xf", here, "-C", tmp_path], check=True)
    assert (tmp_path / "b.whl").read_text() == "b.whl"


@pytest.mark.parametrize(
    ("record", "counts", "said"),
    [
        ({}, None, "not touched"),
        ({}, {"unreachable": 1}, "unreachable"),
        ({}, {"ignored": 1}, "unreachable"),
        ({}, {"failures": 1}, "failed, see above"),
        ({}, {}, ""),
        ({"outcome": "updated", "healthy": True}, {}, "updated; healthy"),
        ({"healthy": False, "faults": ["a", "b"]}, {}, "not healthy: a; b"),
        (
            {"outcome": "rolled back: p95", "healthy": True},
            {"failures": 1},
            "rolled back: p95; healthy",
        ),
    ],
)
def test_the_report_has_a_last_word_on_every_device(
    report: ModuleType, record: dict[str, Any], counts: dict[str, int] | None, said: str
) -> None:
    nothing = {"failures": 0, "unreachable": 0, "ignored": 0}
    assert report.outcome(record, counts if counts is None else nothing | counts) == said


def test_the_report_leaves_out_what_nobody_measured(report: ModuleType) -> None:
    rows = [
        {"host": "porch-cam", "release": "0.1.0", "p95_ms": 8.5, "label": None, "outcome": "fine"},
        {"host": "gate", "outcome": "not touched"},
    ]
    assert report.table(rows).splitlines() == [
        "host       release  p95_ms  outcome",
        "porch-cam  0.1.0    8.5     fine",
        "gate       -        -       not touched",
    ]


def test_a_bundle_has_every_role_and_nothing_of_the_site() -> None:
    left_out = bundle.not_ours(str(PROVISIONING), ["ca", "inventory.yml", "roles", "__pycache__"])

    assert left_out == {"ca", "inventory.yml", "__pycache__"}
    assert bundle.not_ours(str(PROVISIONING / "roles"), ["ca", "broker"]) == set()
