"""The whole appliance as a process: real photos and video, the real model, a real broker."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_app.catalog import shipped_dir
from edge_app.publish.link import Broker
from edge_app.publish.listen import Received, listening
from tests.brokers import Mosquitto

PHOTOS = sorted((shipped_dir() / "samples").glob("*.jpg"))
PATIENCE_S = 30.0


def write_config(
    folder: Path,
    *,
    port: int | None,
    source: str = f"images:{PHOTOS[0].parent}",
    camera: str = "",
    tables: str = "",
    mode: str = "every",
    spool: str = "",
) -> Path:
    """Write a configuration; `camera` holds more keys of the camera, `tables` more tables."""
    path = folder / "config.toml"
    path.write_text(
        f"""
[device]
id = "under-test"
[camera.main]
source = "{source}"
{camera}
[mqtt]
url = "{f"mqtt://127.0.0.1:{port}" if port else ""}"
[publish]
mode = "{mode}"
[spool]
path = "{spool}"
[stats]
interval_s = 0.5
{tables}
"""
    )
    return path


@contextlib.contextmanager
def appliance(config: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "edge_app", "run", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_for_line(process: subprocess.Popen[str], word: str) -> None:
    """Return once a line with `word` was logged; the test's time limit bounds the wait."""
    assert process.stderr is not None
    assert any(word in line for line in process.stderr), f"it ended and never said {word}"


class Ear:
    """Everything that arrives at a broker, in order."""

    def __init__(self, arrived: Any) -> None:
        self._arrived = arrived
        self.heard: list[Received] = []

    def hear_until(self, done: Any) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not done(self):
            received = self._arrived.get(timeout=max(0.01, end_s - time.monotonic()))
            assert received is not None, "the broker closed the connection"
            self.heard.append(received)

    def hear_for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while (
                received := self._arrived.get(timeout=max(0, end_s - time.monotonic()))
            ) is not None:
                self.heard.append(received)

    def payloads(self, kind: str) -> list[bytes]:
        return [payload for topic, payload in self.heard if topic.endswith(f"/{kind}")]

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in self.payloads("result")]

    def stats(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in self.payloads("stats")]


@contextlib.contextmanager
def ear_at(port: int, topics: str = "edge/#") -> Iterator[Ear]:
    with listening(Broker("127.0.0.1", port, f"ear-{time.monotonic_ns()}"), [topics]) as arrived:
        yield Ear(arrived)


def without_repeats(results: list[dict[str, Any]]) -> list[int]:
    """Return the `seq` of results as a consumer keeps them: what it has seen is dropped."""
    kept: list[int] = []
    for result in results:
        if not kept or result["seq"] > kept[-1]:
            kept.append(result["seq"])
    return kept


def test_a_folder_is_delivered_whole(tmp_path: Path, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="loop = false")
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        code, _, err = finish(process)
        ear.hear_until(lambda ear: ear.payloads("status")[-1:] == [b"offline"])
    assert (code, ear.payloads("status")) == (0, [b"online", b"offline"]), err
    results = ear.results()
    assert [result["seq"] for result in results] == list(range(1, len(PHOTOS) + 1))
    assert [result["frame"] for result in results] == list(range(len(PHOTOS)))
    by_photo = {
        photo.stem: result["labels"][0]["label"]
        for photo, result in zip(PHOTOS, results, strict=True)
    }
    assert "espresso" in by_photo["espresso"]
    assert "goldfish" in by_photo["goldfish"]
    assert by_photo["arch"] == "triumphal arch"
    info = json.loads(ear.payloads("info")[-1])
    assert info["model"]["name"] == "mobilenet_v2_1.0_224"
    assert info["cameras"]["main"]["source"].startswith("images:")


def test_a_clip_is_delivered_frame_by_frame(tmp_path: Path, mosquitto: Mosquitto) -> None:
    clip = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 30, (320, 240))
    for photo in PHOTOS[:6]:
        picture = cv2.imread(str(photo))
        assert picture is not None
        for _ in range(4):
            writer.write(cv2.resize(picture, (320, 240)))
    writer.release()
    config = write_config(
        tmp_path, source=f"file:{clip}", port=mosquitto.port, camera="loop = false\nfps = 0"
    )
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        code, _, err = finish(process)
        ear.hear_until(lambda ear: ear.payloads("status")[-1:] == [b"offline"])
    assert code == 0, err
    assert [result["frame"] for result in ear.results()] == list(range(24))


def test_nothing_is_lost_when_the_broker_restarts(tmp_path: Path, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 60")
    with appliance(config) as process:
        with ear_at(mosquitto.port) as before:
            before.hear_until(lambda ear: len(ear.results()) > 30)
            mosquitto.freeze()
            # The outage has a length: about 30 messages are sent in it and not acknowledged.
            before.hear_for(0.5)
        mosquitto.kill()
        wait_for_line(process, "refused")
        # Held still until somebody listens, so that the first message after the outage is heard.
        process.send_signal(signal.SIGSTOP)
        mosquitto.start()
        with ear_at(mosquitto.port) as after:
            process.send_signal(signal.SIGCONT)
            last = before.results()[-1]["seq"]
            after.hear_until(lambda ear: any(r["seq"] > last + 60 for r in ear.results()))
            process.send_signal(signal.SIGTERM)
            after.hear_until(lambda ear: ear.payloads("status")[-1:] == [b"offline"])
        code, _, err = finish(process)
    assert code == 0, err
    seqs = without_repeats(before.results() + after.results())
    assert seqs == list(range(1, seqs[-1] + 1))


def test_waits_for_a_broker_that_comes_late(tmp_path: Path, mosquitto: Mosquitto) -> None:
    mosquitto.kill()
    config = write_config(tmp_path, port=mosquitto.port, camera="loop = false")
    with appliance(config) as process:
        wait_for_line(process, "refused")
        mosquitto.start()
        with ear_at(mosquitto.port) as ear:
            code, _, err = finish(process)
            ear.hear_until(lambda ear: ear.payloads("status")[-1:] == [b"offline"])
    assert code == 0, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_order(
    tmp_path: Path, mosquitto: Mosquitto, number: signal.Signals
) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 30")
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        ear.hear_until(lambda ear: len(ear.results()) > 5)
        process.send_signal(number)
        asked_s = time.monotonic()
        code, _, err = finish(process)
        assert time.monotonic() - asked_s < 6  # the contract's bound, not a speed
        ear.hear_until(lambda ear: ear.payloads("status")[-1:] == [b"offline"])
    assert code == 0, err
    seqs = [result["seq"] for result in ear.results()]
    assert seqs == list(range(1, len(seqs) + 1))


def test_sigterm_with_the_broker_away_is_bounded(tmp_path: Path, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 30")
    with appliance(config) as process:
        with ear_at(mosquitto.port) as ear:
            ear.hear_until(lambda ear: len(ear.results()) > 5)
        mosquitto.kill()
        wait_for_line(process, "refused")  # by then several frames wait for the broker
        process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        code, _, err = finish(process)
        assert time.monotonic() - asked_s < 6
    assert code == 0, err


def test_last_will_after_kill_9(tmp_path: Path, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port)
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        ear.hear_until(lambda ear: ear.payloads("status") == [b"online"])
        process.kill()
        ear.hear_until(lambda ear: ear.payloads("status") == [b"online", b"offline"])


def test_corrupt_pictures_are_skipped_and_counted(tmp_path: Path, mosquitto: Mosquitto) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in PHOTOS[:2]:
        shutil.copy(photo, folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    config = write_config(
        tmp_path, source=f"images:{folder}", port=mosquitto.port, camera="fps = 20"
    )
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        ear.hear_until(lambda ear: sum(s["frames"]["corrupt"] for s in ear.stats()) >= 3)
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0
    assert err.count("broken.jpg") == 1, err  # logged once


def test_a_stalled_camera_ends_it_with_an_event(tmp_path: Path, mosquitto: Mosquitto) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(PHOTOS[0], folder / "0.jpg")
    os.mkfifo(folder / "1.jpg")  # nobody writes to it: reading blocks in the kernel
    config = write_config(
        tmp_path, source=f"images:{folder}", port=mosquitto.port, camera="fps = 20"
    )
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        code, _, err = finish(process)
        ear.hear_until(lambda ear: ear.payloads("status")[-1:] == [b"offline"])
    event = json.loads(ear.payloads("event")[0])
    assert (code, event["event"]) == (69, "camera_stalled")
    assert event["details"] == {"camera": "main"}
    assert "camera main: no frame for" in err


def test_several_cameras_are_served_side_by_side(tmp_path: Path, mosquitto: Mosquitto) -> None:
    second = f'[camera.second]\nsource = "images:{PHOTOS[0].parent}"\nfps = 20\ncrop = "stretch"'
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 20", tables=second)
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        ear.hear_until(lambda ear: len(ear.results()) >= 40)
        process.send_signal(signal.SIGTERM)
        finish(process)
    names = [result["camera"] for result in ear.results()]
    assert abs(names.count("main") - names.count("second")) <= 4


def test_bad_configuration_lists_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        '[camera.main]\nsource = "imges:/x"\nfsp = 3\n[model]\ntop_k = 0\nbackend = "gpu"\n'
    )
    with appliance(path) as process:
        code, out, err = finish(process)
    assert (code, out) == (78, "")
    for said in ("camera.main.source", "images:", "camera.main.fsp", "fps", "model.top_k", "cpu"):
        assert said in err
    assert "Traceback" not in err


def test_an_unusable_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = tmp_path / "broken.tflite"
    model.write_bytes((shipped_dir() / "mobilenet_v2_1.0_224.tflite").read_bytes()[:5000])
    config = write_config(
        tmp_path,
        port=None,
        tables=f'[model]\nname = "{model}"',
    )
    with appliance(config) as process:
        code, _, err = finish(process)
    assert code == 69
    assert "broken.tflite" in err
    assert "Traceback" not in err


def test_without_a_broker_records_go_to_stdout(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=None, camera="loop = false")
    with appliance(config) as process:
        code, out, err = finish(process)
    records = [json.loads(line) for line in out.splitlines()]
    results = [record for record in records if "labels" in record]
    assert code == 0, err
    assert [result["seq"] for result in results] == list(range(1, len(PHOTOS) + 1))
    assert records[0]["topic"] == "edge/under-test/info"
    assert err == ""  # no noise from libraries


def test_throttling_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    firmware = tmp_path / "bin/vcgencmd"
    firmware.parent.mkdir()
    firmware.write_text("#!/bin/sh\necho throttled=0x50001\n")
    firmware.chmod(0o755)
    monkeypatch.setenv("PATH", f"{firmware.parent}:{os.environ['PATH']}")
    with appliance(write_config(tmp_path, port=None)) as process:
        assert process.stdout is not None
        events = (json.loads(line) for line in process.stdout if "/event" in line)
        event = next(events)
    assert event["event"] == "throttled"
    assert event["details"] == {"conditions": "under_voltage"}


def test_changes_mode_says_little_about_a_still_scene(tmp_path: Path, mosquitto: Mosquitto) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(1)
    picture = cv2.imread(str(next(p for p in PHOTOS if p.stem == "espresso")))
    assert picture is not None
    for number in range(10):
        noisy = np.clip(picture + noise.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), noisy)
    config = write_config(
        tmp_path,
        port=mosquitto.port,
        source=f"images:{folder}",
        camera="fps = 40",
        mode="changes",
    )
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        ear.hear_until(lambda ear: sum(s["frames"]["inferred"] for s in ear.stats()) > 60)
        process.send_signal(signal.SIGTERM)
        finish(process)
    results = ear.results()
    assert [result["trigger"] for result in results] == ["change"]
    assert results[0]["labels"][0]["label"] == "espresso"


@pytest.mark.parametrize("delay_s", [0.1, 0.3, 0.5])
def test_a_signal_while_it_starts_ends_it_in_order(tmp_path: Path, delay_s: float) -> None:
    with appliance(write_config(tmp_path, port=None)) as process:
        wait_until_listening_for_signals(process.pid)
        time.sleep(delay_s)  # somewhere in its start; where exactly depends on the machine
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0, err
    assert "Traceback" not in err


def wait_until_listening_for_signals(pid: int) -> None:
    caught = 0
    while not caught >> (signal.SIGTERM - 1) & 1:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = int(next(line for line in lines if line.startswith("SigCgt:")).split()[1], 16)
