"""`models inspect` and `bench --models`, on real files and with the real interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import count
from pathlib import Path

import cv2
import pytest

from edge_app.domain import EngineInfo, Pixels, Tensor, TensorSpec
from edge_app.errors import ModelError, UsageError
from edge_app.models.builder.build import build_random
from edge_app.tools import bench_models, inspect
from edge_app.tools.bench_models import Measured, fit_line

SMALL, LARGER, THIRD = "mobilenet_v1_0.1_32", "mobilenet_v1_0.25_64", "mobilenet_v2_0.1_32"


def edge_app(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_table_shows_the_papers_figures_in_80_columns() -> None:
    result = edge_app("models", "inspect", "mobilenet_v1_1.0_224")

    assert result.returncode == 0, result.stderr
    for figure in ("568.7 M", "4867 M", "4866 M", "4.209 M", "29.28 M", "94.86%", "74.59%"):
        assert figure in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout


def test_json_of_the_shipped_model() -> None:
    result = edge_app("models", "inspect", "mobilenet_v2_1.0_224", "--json")

    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["total"]["macs"] == sum(layer["macs"] for layer in record["layers"]) == 300774272
    assert record["total"]["params"] == sum(layer["params"] for layer in record["layers"])
    assert record["standard"]["macs"] == sum(x["standard"]["macs"] for x in record["layers"])
    assert record["standard"]["macs"] > 4 * record["total"]["macs"]
    assert record["edgetpu_prediction"]["mapped"] == len(record["layers"])
    stem = next(layer for layer in record["layers"] if layer["kind"] == "CONV_2D")
    assert len(stem["quantisation"]["weights"]["scale"]) == 32
    assert record["inputs"][0]["quantisation"]["scale"] == 1 / 128


def test_a_damaged_file_is_one_line_and_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(build_random(SMALL)[:5000])
    result = edge_app("models", "inspect", str(path))

    assert result.returncode == 69
    assert "damaged" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def compiled_model(path: Path) -> Path:
    """What an Edge TPU compiler leaves of a model: one custom operator with a program."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(build_random(SMALL), 0)
    graph = model.subgraphs[0]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode, code.version = "edgetpu-custom-op", 1
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = graph.inputs, graph.outputs
    operator.customOptions = list(bytes(1000))
    model.operatorCodes, graph.operators = [code], [operator]
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def test_a_compiled_model_is_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = compiled_model(tmp_path / "small_edgetpu.tflite")

    inspect.inspect_model(str(path))
    assert "Compiled for the Edge TPU" in capsys.readouterr().out
    inspect.inspect_model(str(path), as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["compiled_for_edgetpu"]
    assert record["total"] is None
    with pytest.raises(UsageError, match="hides the layers"):
        inspect.inspect_model(str(path), plot=tmp_path / "plot.png")
    with pytest.raises(ModelError, match="hides its multiply-adds"):
        bench_models.bench_models([str(path)])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ModelError):
        inspect.inspect_model("mobilenet_v9")


def test_pictures_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers, latency = tmp_path / "layers.png", tmp_path / "latency.png"

    inspect.inspect_model(SMALL, plot=layers)
    bench_models.bench_models([SMALL, LARGER, THIRD], plot=latency, rounds=1)
    for path in (layers, latency):
        pixels = cv2.imread(str(path))
        assert pixels is not None
        assert min(pixels.shape[:2]) >= 400
        assert pixels.std() > 10  # something is on it


@pytest.mark.parametrize("name", ["plot.jpg", "no/such/folder/plot.png"])
def test_a_picture_that_cannot_be_written_is_refused_before_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        bench_models.bench_models(["mobilenet_v9"], plot=tmp_path / name)


def test_without_matplotlib_the_error_names_the_extra() -> None:
    script = (
        "import sys; sys.modules['matplotlib.figure'] = None\n"
        "from pathlib import Path\n"
        "from edge_app.errors import UsageError\n"
        "from edge_app.tools.plot import check_plot\n"
        "try:\n"
        "    check_plot(Path('plot.png'))\n"
        "except UsageError as error:\n"
        "    print(error.hint)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "edge-app[plot]" in result.stdout, result.stderr


def test_bench_measures_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_models.bench_models([SMALL, LARGER, THIRD], as_json=True, rounds=2) == 0

    record = json.loads(capsys.readouterr().out)
    assert [model["model"] for model in record["models"]] == [SMALL, LARGER, THIRD]
    for model in record["models"]:
        assert 0 < model["p10_ms"] <= model["median_ms"] <= model["p90_ms"]
        assert model["random_weights"]
        assert model["energy_mj"] is None
    assert record["models"][0]["macs"] < record["models"][1]["macs"]
    assert record["fits"]["cpu"]["r_squared"] <= 1


class Recorder:
    """An engine that does nothing but note whose turn it is."""

    def __init__(self, name: str, turns: list[str]) -> None:
        spec = TensorSpec("input", (1, 32, 32, 3), "int8")
        self._name, self._turns = name, turns
        self.info = EngineInfo(name, "recorder", "none", "", 1, spec, ())

    def run(self, pixels: Pixels) -> list[Tensor]:
        assert pixels.shape == (32, 32, 3)
        if self._turns[-1:] != [self._name]:
            self._turns.append(self._name)
        return []

    def close(self) -> None:
        self._turns.append(f"{self._name} closed")


def test_models_take_turns_and_energy_is_per_inference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    turns: list[str] = []
    joules = count()  # one joule between any two readings

    bench_models.bench_models(
        [SMALL, THIRD],
        as_json=True,
        rounds=3,
        openers={"recorder": lambda _, name: Recorder(name, turns)},
        read_energy_j=lambda: float(next(joules)),
    )

    # Warm-up, then three rounds.
    assert turns == [*[SMALL, THIRD] * 4, f"{THIRD} closed", f"{SMALL} closed"]
    for model in json.loads(capsys.readouterr().out)["models"]:
        assert model["energy_mj"] == pytest.approx(3 * 1000 / model["runs"])


def measured(macs: int, median_ms: float) -> Measured:
    return Measured("m", "cpu", "r", 1, True, macs, 1, median_ms, median_ms, median_ms, None)


def test_the_line_through_points() -> None:
    on_line = fit_line([measured(m * 1_000_000, 0.5 + 0.01 * m) for m in (10, 20, 60)])
    assert on_line is not None
    assert on_line.intercept_ms == pytest.approx(0.5)
    assert on_line.ms_per_million_macs == pytest.approx(0.01)
    assert on_line.r_squared == pytest.approx(1)

    off_line = fit_line([measured(m * 1_000_000, y) for m, y in ((1, 1), (2, 3), (3, 2))])
    assert off_line is not None
    assert off_line.r_squared == pytest.approx(0.25)

    two = fit_line([measured(1_000_000, 1), measured(2_000_000, 3)])
    assert two is not None
    assert two.r_squared is None
    assert fit_line([measured(1_000_000, 1)] * 2) is None
