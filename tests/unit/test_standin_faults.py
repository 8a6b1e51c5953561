"""How a test tells the stand-in device what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.standin.edgetpu import Fault, build, device
from tests.standin.edgetpu.faults import set_fault, strike, times_struck


def test_no_fault_at_first(tmp_path: Path) -> None:
    assert strike(tmp_path, "open") is None
    assert strike(tmp_path, "invoke") is None
    assert times_struck(tmp_path) == 0


def test_a_fault_meets_only_its_own_kind_of_request(tmp_path: Path) -> None:
    set_fault(tmp_path, Fault("wrong_output", mask=3))
    assert strike(tmp_path, "open") is None
    struck = strike(tmp_path, "invoke")
    assert struck is not None
    assert (struck.kind, struck.mask) == ("wrong_output", 3)
    set_fault(tmp_path, Fault("open_refused"))
    assert strike(tmp_path, "invoke") is None
    assert strike(tmp_path, "open") is not None


def test_it_strikes_so_many_times(tmp_path: Path) -> None:
    set_fault(tmp_path, Fault("invoke_error", times=2))
    assert [strike(tmp_path, "invoke") is not None for _ in range(4)] == [True, True, False, False]
    assert times_struck(tmp_path) == 2


def test_an_equal_fault_set_again_starts_anew(tmp_path: Path) -> None:
    for _ in range(2):
        set_fault(tmp_path, Fault("invoke_error", times=1))
        assert times_struck(tmp_path) == 0
        assert strike(tmp_path, "invoke") is not None
        assert strike(tmp_path, "invoke") is None


def test_healed(tmp_path: Path) -> None:
    set_fault(tmp_path, Fault("invoke_error"))
    set_fault(tmp_path, None)
    assert strike(tmp_path, "invoke") is None
    assert times_struck(tmp_path) == 0


def test_a_folder_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"at most 107: use a shorter folder"),
        device(tmp_path / ("x" * 100), tmp_path / "twin.tflite"),
    ):
        pass


def test_a_twin_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "twin.tflite").write_bytes(b"not a model")
    with (
        pytest.raises(RuntimeError, match=r"(?s)does not start.*ValueError"),
        device(tmp_path / "tpu", tmp_path / "twin.tflite"),
    ):
        pass


def test_unplugged_there_is_no_process(tmp_path: Path) -> None:
    with device(tmp_path / "tpu", tmp_path / "twin.tflite", plugged_in=False) as tpu:
        with pytest.raises(RuntimeError, match="not plugged in"):
            tpu.freeze()
        assert tpu.opens == []
        assert tpu.log == ""


def test_the_linker_still_looks_where_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    with device(tmp_path / "tpu", tmp_path / "twin.tflite", plugged_in=False) as tpu:
        assert tpu.environment["LD_LIBRARY_PATH"] == f"{build()}:/elsewhere"


def test_the_library_is_built_once_for_each_kind(tmp_path: Path) -> None:
    first = build(tmp_path)
    made_ns = (first / "libedgetpu.so.1").stat().st_mtime_ns
    assert build(tmp_path) == first
    assert (first / "libedgetpu.so.1").stat().st_mtime_ns == made_ns
    assert build(tmp_path, too_old=True) != first
    assert [path.name for path in first.iterdir()] == ["libedgetpu.so.1"]
