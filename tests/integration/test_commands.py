"""Commands to the whole appliance, through a real broker; and its flight recorder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_app.errors import EXIT_UNAVAILABLE
from edge_app.recorder import COLUMNS, MAX_BYTES
from edge_app.snapshot import MAX_BYTES as MAX_JPEG_BYTES
from tests.brokers import Mosquitto, amqtt_running
from tests.integration.test_appliance import (
    PHOTOS,
    appliance,
    ear_at,
    finish,
    wait_for_line,
    write_config,
)
from tests.operator import Heard, Operator, operating

SECOND_CAMERA = f'[camera.second]\nsource = "images:{PHOTOS[0].parent}"\nfps = 20\n'


@contextmanager
def commanded(
    folder: Path, port: int, *, v5: bool = True, **config: Any
) -> Iterator[tuple[Operator, subprocess.Popen[str]]]:
    """Run an appliance, and yield who commands it once it serves."""
    config.setdefault("camera", "fps = 20")
    with (
        operating(port, v5=v5) as operator,
        appliance(write_config(folder, port=port, **config)) as p,
    ):
        operator.wait_until_served()
        yield operator, p


def settings_of(heard: Heard) -> Any:
    return heard.json()["settings"] if heard.kind == "info" else None


def test_pause_and_resume(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with commanded(tmp_path, mosquitto.port, mode="changes") as (operator, _):
        assert operator.ask("pause")["result"]["paused"] is True
        operator.hear(lambda h: bool((s := settings_of(h)) and s["paused"]))
        operator.hear(lambda h: h.kind == "stats" and h.json()["frames"]["inferred"] == 0)
        since = len(operator.heard)
        idle = operator.hear(lambda h: h.kind == "stats" and h.json()["fps"]["captured"] > 0, since)
        frames = idle.json()["frames"]
        assert (frames["inferred"], frames["dropped"]) == (0, 0)
        assert abs(frames["captured"] - frames["gated"]) <= 1  # one may be counted by half
        operator.hear(lambda h: h.kind == "stats", since)
        assert operator.of_kind("result", since) == []
        reply = operator.ask("resume")
        assert reply["result"]["paused"] is False
        operator.hear(lambda h: h.kind == "result", since)


def test_set_changes_results_and_info(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with commanded(tmp_path, mosquitto.port) as (operator, process):
        reply = operator.ask("set", {"top_k": 7, "threshold": 0})
        wanted = {"threshold": 0.0, "top_k": 7, "mode": "every", "fps": 0.0}
        assert reply["result"] == wanted | {"paused": False, "performance": None}
        operator.hear(lambda h: settings_of(h) == reply["result"])
        operator.hear(lambda h: h.kind == "result" and len(h.json()["labels"]) == 7)
        operator.ask("set", {"threshold": 1})
        operator.hear(lambda h: h.kind == "result" and h.json()["labels"] == [])
        assert operator.ask("set", {"fps": 2.5})["ok"]
        slow = operator.hear(
            lambda h: h.kind == "stats" and h.json()["frames"]["gated"] > 0, len(operator.heard)
        )
        slow = operator.hear(lambda h: h.kind == "stats", operator.heard.index(slow) + 1)
        frames = slow.json()["frames"]
        assert frames["inferred"] < frames["captured"] / 3
        operator.ask("set", {"mode": "changes", "fps": 0})
        changed = len(operator.heard)
        operator.hear(lambda h: h.kind == "stats" and h.json()["fps"]["inferred"] > 5, changed)
        assert {r["trigger"] for r in operator.of_kind("result", changed)} <= {"change", "every"}
        process.terminate()
        code, _, err = finish(process)
    assert code == 0, err
    # What was configured is back after a restart.
    with commanded(tmp_path, mosquitto.port) as (operator, _):
        settings = operator.of_kind("info")[-1]["settings"]
        assert settings == wanted | {
            "threshold": 0.3,
            "top_k": 3,
            "paused": False,
            "performance": None,
        }


def shows(heard: Heard, camera: str, photo: int) -> bool:
    """Whether this is a result of one of the sample photos."""
    if heard.kind != "result":
        return False
    result = heard.json()
    return bool(result["camera"] == camera and result["frame"] % len(PHOTOS) == photo)


def test_snapshots_show_the_frame_with_its_own_label(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with commanded(tmp_path, mosquitto.port, tables=SECOND_CAMERA) as (operator, _):
        for paused in (False, True):
            operator.ask("pause" if paused else "resume")
            since = len(operator.heard)
            reply = operator.ask("snapshot", {"camera": "second"})
            heard = operator.hear(lambda h: h.content_type == "image/jpeg", since)
            taken = reply["result"]
            assert (heard.topic, len(heard.payload)) == ("edge/under-test/snapshot", taken["bytes"])
            assert taken["bytes"] <= MAX_JPEG_BYTES
            assert taken["camera"] == "second"
            picture = cv2.imdecode(np.frombuffer(heard.payload, np.uint8), cv2.IMREAD_COLOR)
            assert picture is not None
            assert list(picture.shape[1::-1]) == taken["size_px"]
            if not paused:  # the same photo comes round again, and its result is published
                photo = taken["frame"] % len(PHOTOS)
                result = operator.hear(partial(shows, camera="second", photo=photo)).json()
                assert taken["labels"] == result["labels"]
        assert operator.ask("snapshot")["result"]["camera"] == "main"
        refused = operator.ask("snapshot", {"camera": "attic"})
        assert refused["reason"] == 'camera: found "attic"; allowed: main, second'


def test_the_selftest_looks_at_every_part(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with commanded(tmp_path, mosquitto.port, tables=SECOND_CAMERA) as (operator, _):
        operator.ask("pause")
        outcome = operator.ask("selftest")["result"]
        assert outcome["passed"], outcome
        checks = {check["check"]: check["message"] for check in outcome["checks"]}
        assert list(checks) == ["model", "camera main", "camera second", "engine", "sensors"]
        assert "8 golden images" in checks["model"]
        assert checks["engine"].startswith("cpu ran ")
        found = checks["sensors"].removeprefix("answer: ")
        assert found == "this machine has none that answers" or "none" not in found


def test_the_selftest_finds_a_damaged_model(tmp_path: Path, mosquitto: Mosquitto) -> None:
    model = tmp_path / "own.tflite"
    model.write_bytes((PHOTOS[0].parents[1] / "mobilenet_v2_1.0_224.tflite").read_bytes())
    table = f'[model]\nname = "{model}"\n'
    with commanded(tmp_path, mosquitto.port, tables=table) as (operator, _):
        with model.open("r+b") as file:
            file.truncate(100_000)
        outcome = operator.ask("selftest")["result"]
        failed = [check["check"] for check in outcome["checks"] if not check["ok"]]
        assert (outcome["passed"], failed) == (False, ["model"])
        since = len(operator.heard)
        operator.hear(lambda h: h.kind == "result", since)  # it goes on with what it has loaded


def test_the_clock_of_an_edge_tpu_that_is_not_there(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with commanded(tmp_path, mosquitto.port) as (operator, _):
        reply = operator.ask("performance", {"level": "max"})
        assert (reply["ok"], reply["result"]) == (False, None)
        assert "no Edge TPU" in reply["reason"]
        event = operator.hear(lambda h: h.kind == "event").json()
        assert (event["event"], event["details"]["command"]) == ("command_refused", "performance")


def test_restart_ends_it_in_order(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with commanded(tmp_path, mosquitto.port) as (operator, process):
        assert operator.ask("restart")["result"] == {"supervised": False}
        operator.hear(lambda h: h.payload == b"offline")
        code, _, err = finish(process)
        seqs = [result["seq"] for result in operator.of_kind("result")]
    assert (code, "flight recorder" in err) == (0, False), err
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_retained_command_is_refused(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with operating(mosquitto.port) as operator:
        operator.send("restart", {}, retain=True)  # an empty one would be forgotten
        operator.hear(lambda h: h.kind == "restart")
    with commanded(tmp_path, mosquitto.port) as (operator, process):
        reply = operator.hear(lambda h: h.kind == "reply").json()
        assert (reply["command"], reply["ok"]) == ("restart", False)
        assert "retained" in reply["reason"]
        operator.hear(lambda h: h.kind == "result", len(operator.heard))
        assert process.poll() is None


def test_a_retained_command_is_neither_obeyed_now_nor_when_it_is_cleared(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    with commanded(tmp_path, mosquitto.port) as (operator, process):
        operator.send("restart", {}, retain=True)
        reply = operator.hear(lambda h: h.kind == "reply").json()
        assert "retained" in reply["reason"]
        operator.send("restart", retain=True)
        assert operator.ask("resume")["ok"]  # it came after, and there is somebody to answer
        assert process.poll() is None
        assert len(operator.of_kind("reply")) == 1


def test_a_sender_cannot_make_it_speak_out_of_turn(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with commanded(tmp_path, mosquitto.port) as (operator, _):
        for topic in ("edge/under-test/result", "answers/#"):
            assert "response topic" in operator.ask("pause", reply_topic=topic)["reason"]
        operator.hear(lambda h: h.correlation != b"" and h.topic == "edge/under-test/reply")
        operator.hear(lambda h: h.kind == "result", len(operator.heard))  # and it did not pause


def test_a_broker_that_knows_no_mqtt_5(tmp_path: Path) -> None:
    with amqtt_running() as port, commanded(tmp_path, port, v5=False) as (operator, _):
        reply = operator.ask("set", {"threshold": 0.7})
        assert (reply["command"], reply["result"]["threshold"]) == ("set", 0.7)
        assert operator.ask("boo")["ok"] is False


def test_a_flood_of_bad_commands_changes_nothing(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with commanded(tmp_path, mosquitto.port) as (operator, process):
        since = len(operator.heard)
        frames_before = operator.of_kind("result")[-1]["frame"]
        noise = np.random.default_rng(7)
        for number in range(3000):
            size = 60_000 if number % 100 == 0 else 200
            operator.send(f"boo{number % 50}", noise.bytes(size), qos=0)
            operator.send("set", b'{"threshold": 2}', qos=0)
        operator.hear(lambda h: h.kind == "event" and h.json()["event"] == "command_refused", since)
        last = operator.of_kind("result")[-1]["frame"]
        operator.hear(lambda h: h.kind == "result" and h.json()["frame"] > last + 10, since)

        # The last of the flood may still be on its way: what comes with it is thrown away unread.
        for _ in range(40):
            operator.send("set", {"threshold": 0.6})
            operator.hear(lambda h: h.kind == "stats", len(operator.heard))
            if operator.of_kind("info")[-1]["settings"]["threshold"] == 0.6:
                break
        else:
            raise AssertionError("it serves no command any more")
        results = operator.of_kind("result", since)
        span_s = (results[-1]["uptime_ms"] - results[0]["uptime_ms"]) / 1e3
        replies = [h for h in operator.heard[since:] if h.kind in ("reply", "replies")]
        assert len(replies) <= 12 * (span_s + 2)  # ten served or refused a second, and a warning
        assert len(operator.of_kind("event", since)) <= 2
        seqs = [r["seq"] for r in operator.of_kind("result") + operator.of_kind("event")]
        assert sorted(seqs) == list(range(1, len(seqs) + 1))
        assert results[-1]["frame"] > frames_before
        assert process.poll() is None


def test_home_assistants_birth_is_answered(tmp_path: Path, mosquitto: Mosquitto) -> None:
    folder = tmp_path / "still"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(PHOTOS[3].read_bytes())
    tables = "[camera.second]\n" + f'source = "images:{folder}"\nfps = 20\n'
    with commanded(
        tmp_path, mosquitto.port, source=f"images:{folder}", mode="changes", tables=tables
    ) as (operator, _):
        operator.hear(lambda h: h.kind == "result" and h.json()["camera"] == "second")
        operator.hear(lambda h: h.kind == "stats")
        since = len(operator.heard)
        operator.client.publish("homeassistant/status", "online", 1)
        operator.hear(lambda h: h.kind == "info", since)
        operator.hear(lambda _: len({r["camera"] for r in operator.of_kind("result", since)}) == 2)
        assert {r["trigger"] for r in operator.of_kind("result", since)} == {"heartbeat"}


def test_a_recording_waits_while_paused(tmp_path: Path, mosquitto: Mosquitto) -> None:
    camera = "loop = false\nfps = 4"
    with commanded(tmp_path, mosquitto.port, camera=camera) as (operator, process):
        operator.ask("pause")
        since = len(operator.heard)
        for _ in range(2):
            before = operator.hear(lambda h: h.kind == "stats", since)
            since = operator.heard.index(before) + 1
        assert operator.hear(lambda h: h.kind == "stats", since).json()["frames"]["captured"] == 0
        assert process.poll() is None
        operator.ask("resume")
        code, _, err = finish(process)
        operator.hear(lambda h: h.payload == b"offline")
        frames = [result["frame"] for result in operator.of_kind("result")]
    assert code == 0, err
    assert frames == list(range(len(PHOTOS)))  # not one is left out


# --- the flight recorder --------------------------------------------------------------------------


def flight_record(err: str) -> Any:
    (line,) = [line for line in err.splitlines() if "flight recorder: " in line]
    assert len(line.encode()) < MAX_BYTES + 200
    return json.loads(line.split("flight recorder: ")[1])


def test_dump_returns_what_sigusr1_logs(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with commanded(tmp_path, mosquitto.port) as (operator, process):
        operator.ask("boo")
        operator.hear(lambda h: h.kind == "event")

        record = operator.ask("dump")["result"]
        while len(record["seconds"]) < 2:
            operator.hear(lambda h: h.kind == "stats", len(operator.heard))
            record = operator.ask("dump")["result"]
        assert record["reason"] == "command"
        second = dict(zip(record["columns"], record["seconds"][-1], strict=True))
        assert list(second) == COLUMNS
        assert second["backend"] == "cpu"
        assert second["captured_fps"] > 0
        assert second["connects"] == 1
        assert [event["event"] for event in record["events"]] == ["command_refused"]
        process.send_signal(signal.SIGUSR1)
        assert process.stderr is not None
        line = next(line for line in process.stderr if "flight recorder" in line)
        logged = flight_record(line)
        assert (logged["reason"], logged["columns"]) == ("SIGUSR1", COLUMNS)
        assert logged["seconds"][:2] == record["seconds"][:2]
        operator.hear(lambda h: h.kind == "result", len(operator.heard))  # and it goes on


def test_a_failure_leaves_a_record(tmp_path: Path, mosquitto: Mosquitto) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(PHOTOS[0].read_bytes())
    os.mkfifo(folder / "1.jpg")  # nobody writes to it: reading blocks in the kernel
    config = write_config(
        tmp_path, source=f"images:{folder}", port=mosquitto.port, camera="fps = 20"
    )
    with ear_at(mosquitto.port), appliance(config) as process:
        code, _, err = finish(process)
    record = flight_record(err)
    assert code == 69
    assert record["reason"].startswith("CameraStalled: camera main: no frame for")
    assert record["events"][-1]["event"] == "camera_stalled"
    assert len(record["seconds"]) >= 3
    assert err.index("flight recorder") < err.index("edge-app: camera main")  # what helps is last


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_says_where_every_thread_was(tmp_path: Path, number: signal.Signals) -> None:
    with appliance(write_config(tmp_path, port=None, camera="fps = 20")) as process:
        assert process.stdout is not None
        assert any('"labels"' in line for line in process.stdout)
        process.send_signal(number)
        code, _, err = finish(process)
    assert code == -number
    assert re.search(r"Fatal Python error: (Segmentation fault|Aborted)", err)
    assert "loop.py" in err


def test_after_a_kill_the_next_start_tells(
    tmp_path: Path, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(runtime))  # as systemd does
    copy = runtime / "flight.json"
    with commanded(tmp_path, mosquitto.port) as (operator, process):
        while not copy.exists():
            operator.hear(lambda h: h.kind == "stats", len(operator.heard))
        process.kill()
        process.wait()
    missing = write_config(tmp_path, port=mosquitto.port, tables='[model]\nname = "missing"')
    with appliance(missing) as process:  # one that fails has told nobody
        assert finish(process)[0] == EXIT_UNAVAILABLE
    with commanded(tmp_path, mosquitto.port) as (operator, process):
        event = operator.hear(lambda h: h.kind == "event").json()
        assert event["event"] == "unclean_end"
        process.terminate()
        code, _, err = finish(process)
    assert code == 0
    record = flight_record(err)
    assert "killed" in record["reason"]
    assert record["seconds"]
    assert not copy.exists()


def test_sigusr1_while_it_starts_does_no_harm(tmp_path: Path) -> None:
    with appliance(write_config(tmp_path, port=None, camera="loop = false")) as process:
        assert process.stdout is not None
        process.stdout.readline()  # info: the loop does not run yet, or has just begun
        process.send_signal(signal.SIGUSR1)
        code, _, err = finish(process)
    assert code == 0, err


def test_all_is_well_and_nothing_is_written(tmp_path: Path, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port)
    with appliance(config) as process:
        wait_for_line(process, "connected")
        process.terminate()
        code, _, err = finish(process)
    assert code == 0
    assert "flight recorder" not in err
