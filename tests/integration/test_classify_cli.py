"""`edge-app classify` as users and programs run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edge_app import catalog
from edge_app.catalog import ModelFiles
from tests import tiny_models

CAT = catalog.shipped_dir() / "samples" / "cat.jpg"


def classify(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_app", "classify", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_json_as_documented(default_model: ModelFiles) -> None:
    done = classify("--json", "--top-k", "2", CAT)
    assert (done.returncode, done.stderr) == (0, "")
    (record,) = records(done)
    assert list(record) == ["file", "model", "backend", "labels", "timing_ms"]
    assert (record["file"], record["model"], record["backend"]) == (
        str(CAT),
        default_model.name,
        "cpu",
    )
    assert len(record["labels"]) == 2
    assert list(record["labels"][0]) == ["index", "label", "score"]
    best = record["labels"][0]
    assert "cat" in best["label"].lower()
    assert best["label"] == default_model.labels[best["index"]]
    assert record["labels"][0]["score"] >= record["labels"][1]["score"] > 0
    assert list(record["timing_ms"]) == ["load", "preprocess", "invoke", "postprocess"]
    assert all(spent >= 0 for spent in record["timing_ms"].values())


def test_text_for_people() -> None:
    done = classify(CAT)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"{CAT}  (cpu, ")
    assert len(rest) == 3
    assert "%" in rest[0]


def test_a_broken_file_in_the_middle(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(CAT.read_bytes()[:2000])
    cut = tmp_path / "cut.png"
    with Image.open(CAT) as picture:
        picture.save(cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    done = classify("--json", CAT, broken, tmp_path / "absent.jpg", cut, tmp_path, CAT)
    assert (done.returncode, done.stderr) == (69, "")
    found = records(done)
    assert [list(record)[1] for record in found] == ["model", *["error"] * 4, "model"]
    assert found[0]["labels"] == found[-1]["labels"]
    assert str(broken) in found[1]["error"]

    done = classify(CAT, broken, CAT)
    assert done.returncode == 69
    assert done.stdout.count("(cpu, ") == 2
    assert f"{broken}  failed" in done.stdout
    assert "not an image" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_on_its_side_is_the_same_picture(tmp_path: Path) -> None:
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    with Image.open(CAT) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    upright, sideways = records(classify("--json", CAT, turned))
    assert sideways["labels"] == upright["labels"]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))
    odd.write_bytes(CAT.read_bytes())
    done = classify("--json", odd)
    assert (done.returncode, done.stderr) == (0, "")
    assert records(done)[0]["file"] == os.fspath(odd)
    done = classify(odd, PYTHONIOENCODING="utf-8:strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert "udcff.jpg" in done.stdout


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("mobilenet_v2_1.0_225", "did you mean mobilenet_v2_1.0_224?"),
        ("absent.tflite", "no such file"),
        ("text.tflite", "not a TensorFlow Lite model"),
        ("float.tflite", "input is float32"),
        ("compiled_edgetpu.tflite", "no CPU twin"),
        ("compiled.tflite", "compiled for the Edge TPU"),
    ],
)
def test_a_model_that_cannot_be_used(tmp_path: Path, model: str, reason: str) -> None:
    (tmp_path / "text.tflite").write_text("words")
    (tmp_path / "float.tflite").write_bytes(tiny_models.reshape_model("float32"))
    for name in ("compiled.tflite", "compiled_edgetpu.tflite"):
        (tmp_path / name).write_bytes(tiny_models.edgetpu_model())
    if model == "compiled_edgetpu.tflite":
        (tmp_path / "compiled.tflite").unlink()
    done = classify("--model", tmp_path / model if model.endswith("tflite") else model, CAT)
    assert (done.returncode, done.stdout) == (69, "")
    assert reason in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    model, labels = tmp_path / "own.tflite", tmp_path / "labels.txt"
    model.write_bytes(tiny_models.reshape_model("uint8"))
    labels.write_text("\n".join(f"channel {number}" for number in range(12)))
    (record,) = records(classify("--json", "--model", model, "--labels", labels, CAT))
    assert record["model"] == "own"
    assert record["labels"][0]["label"].startswith("channel ")
    labels.write_text("too\nfew\n")
    done = classify("--model", model, "--labels", labels, CAT)
    assert done.returncode == 69
    assert "2 labels for a model with 12 outputs" in done.stderr
