"""The whole appliance with an Edge TPU that comes and goes: what a user of it sees."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_app.catalog import resolve, shipped_dir
from tests.brokers import Mosquitto
from tests.integration.test_appliance import PHOTOS, appliance, finish, write_config
from tests.operator import operating
from tests.standin.edgetpu import Device, device
from tests.standin.edgetpu.compile import compiled

Record = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model by path, its "compiled" twin beside it."""
    cpu = resolve("mobilenet_v2_1.0_224").cpu
    assert cpu is not None
    path = tmp_path_factory.mktemp("model") / "own.tflite"
    path.write_bytes(cpu.read_bytes())
    path.with_name("own_edgetpu.tflite").write_bytes(compiled(cpu.read_bytes()))
    return path


@pytest.fixture
def tpu(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with device(tmp_path / "tpu", model) as tpu:
        for name, value in tpu.environment.items():
            monkeypatch.setenv(name, value)
        yield tpu


def config(
    folder: Path, model: Path, backend: str, camera: str = "fps = 60", port: int | None = None
) -> Path:
    labels = shipped_dir() / "imagenet_labels.txt"
    table = f'[model]\nname = "{model}"\nlabels = "{labels}"\nbackend = "{backend}"\n'
    table += 'performance = "max"\n'
    return write_config(folder, port=port, camera=camera, tables=table)


def read_until(process: subprocess.Popen[str], done: Callable[[Record], bool]) -> list[Record]:
    """Return the records up to the first for which `done`; the time limit bounds the wait."""
    assert process.stdout is not None
    records = []
    for line in process.stdout:
        records.append(json.loads(line))
        if done(records[-1]):
            return records
    raise AssertionError(f"it ended after {records[-3:]}")


def answered_by(backend: str) -> Callable[[Record], bool]:
    return lambda record: "labels" in record and record["backend"] == backend


def test_it_falls_back_and_returns_and_says_so(tmp_path: Path, model: Path, tpu: Device) -> None:
    with appliance(config(tmp_path, model, "auto")) as process:
        records = read_until(process, answered_by("edgetpu"))
        tpu.unplug()
        records += read_until(process, answered_by("cpu"))
        records += read_until(process, lambda r: r.get("event") == "fallback")
        records += read_until(process, lambda r: r["topic"].endswith("/stats"))
        tpu.plug_in()
        records += read_until(process, lambda r: r.get("event") == "promoted")
        records += read_until(process, answered_by("edgetpu"))
        records += read_until(process, lambda r: r["topic"].endswith("/stats"))
        process.terminate()
        code, _, err = finish(process)
    assert code == 0, err
    # No frame of the source was lost or answered twice.
    frames = [record["frame"] for record in records if "labels" in record]
    assert frames == sorted(set(frames))
    events = [record for record in records if "event" in record]
    assert [event["event"] for event in events][:2] == ["promoted", "fallback"]
    assert "SIGABRT" in events[1]["message"]
    assert events[1]["details"]["said"]
    stats = [record for record in records if record["topic"].endswith("/stats")]
    away = next(s for s in stats if s["accelerator"]["fallbacks"] == 1)
    assert away["accelerator"]["cause"]
    assert stats[-1]["accelerator"]["promotions"] == 2
    infos = [record for record in records if record["topic"].endswith("/info")]
    assert infos[0]["backend"] == "cpu"
    assert "edgetpu" in [info["backend"] for info in infos]
    survey = infos[-1]["edgetpu"]  # libedgetpu, asked in a process of its own
    assert survey["library_version"]
    assert survey["problem"] == ""
    assert tpu.opens[0]["Performance"] == "Max"
    assert err.count("the CPU answers") <= 2  # lost; then, absent: each said once


def test_auto_without_one_serves_on_the_cpu(tmp_path: Path, model: Path, tpu: Device) -> None:
    tpu.unplug()
    with appliance(config(tmp_path, model, "auto")) as process:
        records = read_until(process, lambda r: r.get("event") == "fallback")
        process.terminate()
        code, _, _ = finish(process)
    assert code == 0
    assert "no Edge TPU is attached" in records[-1]["message"]


def test_edgetpu_without_one_exits_with_cause_and_cure(
    tmp_path: Path, model: Path, tpu: Device
) -> None:
    tpu.unplug()
    with appliance(config(tmp_path, model, "edgetpu")) as process:
        code, _, err = finish(process)
    assert code == 69
    assert "no Edge TPU is attached" in err
    assert "plug it in" in err
    assert "Traceback" not in err


def test_edgetpu_serves_every_frame(tmp_path: Path, model: Path, tpu: Device) -> None:
    with appliance(config(tmp_path, model, "edgetpu", "loop = false")) as process:
        code, out, err = finish(process)
    assert code == 0, err
    results = [record for line in out.splitlines() if "labels" in (record := json.loads(line))]
    assert [result["backend"] for result in results] == ["edgetpu"] * len(PHOTOS)
    assert results[0]["labels"][0]["label"] == "triumphal arch"


def test_cpu_never_probes(tmp_path: Path, model: Path, tpu: Device) -> None:
    with appliance(config(tmp_path, model, "cpu", "loop = false")) as process:
        code, out, _ = finish(process)
    assert (code, tpu.opens) == (0, [])
    assert '"edgetpu":null' in out


@pytest.mark.parametrize("backend", ["auto", "edgetpu"])
def test_classify_waits_for_it(model: Path, tpu: Device, backend: str) -> None:
    command = [sys.executable, "-m", "edge_app", "classify", "--json", "--backend", backend]
    command += ["--model", str(model), str(PHOTOS[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["backend"] == "edgetpu"


@pytest.mark.parametrize("present", [True, False])
def test_bench_measures_it_where_there_is_one(model: Path, tpu: Device, present: bool) -> None:
    if not present:
        tpu.unplug()
    command = [sys.executable, "-m", "edge_app", "bench", "--json", "--models", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    measured = {each["backend"]: each for each in json.loads(done.stdout)["models"]}
    assert set(measured) == ({"cpu", "edgetpu"} if present else {"cpu"})
    if present:
        assert "libedgetpu" in measured["edgetpu"]["runtime"]
        assert measured["edgetpu"]["median_ms"] > 0
    else:
        assert "not measured on the Edge TPU: " in done.stderr


def test_a_model_without_a_twin_says_so(tmp_path: Path) -> None:
    path = write_config(tmp_path, port=None, tables='[model]\nbackend = "edgetpu"\n')
    with appliance(path) as process:
        code, _, err = finish(process)
    assert code == 69
    assert "has no file compiled for it" in err


def test_a_command_sets_its_clock_and_no_frame_is_lost(
    tmp_path: Path, model: Path, tpu: Device, mosquitto: Mosquitto
) -> None:
    path = config(tmp_path, model, "auto", camera="fps = 0", port=mosquitto.port)
    with operating(mosquitto.port) as operator, appliance(path) as process:
        operator.hear(lambda h: h.kind == "result" and h.json()["backend"] == "edgetpu")
        reply = operator.ask("performance", {"level": "low"})
        assert reply["result"]["performance"] == "low"
        since = len(operator.heard)
        operator.hear(lambda h: h.kind == "event" and h.json()["event"] == "promoted", since)
        operator.hear(lambda h: h.kind == "result" and h.json()["backend"] == "edgetpu", since)
        operator.hear(lambda h: h.kind == "info" and h.json()["backend"] == "edgetpu", since)
        assert operator.of_kind("info")[-1]["settings"]["performance"] == "low"
        outcome = operator.ask("selftest")["result"]
        process.terminate()
        code, _, err = finish(process)
        operator.hear(lambda h: h.payload == b"offline")
    assert code == 0, err
    assert [opened["Performance"] for opened in tpu.opens] == ["Max", "Low"]
    engine = next(check for check in outcome["checks"] if check["check"] == "engine")
    assert engine["message"].startswith("edgetpu ran ")
    kinds = [event["event"] for event in operator.of_kind("event")]
    assert kinds == ["promoted", "reopening", "promoted"]
    frames = [result["frame"] for result in operator.of_kind("result")]
    assert frames == list(range(frames[0], frames[0] + len(frames)))
