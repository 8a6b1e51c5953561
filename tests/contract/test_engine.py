"""One set of promises for the engine, kept by both runtimes that can carry it."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edge_app.domain import Pixels
from edge_app.engine.litert import RUNTIMES, LiteRtEngine, find_runtime
from edge_app.errors import EngineError, ModelError
from edge_app.task.classify import decode, scores
from tests import tiny_models

Write = Callable[[bytes], Path]


# Only what is installed: `-k tflite` then selects nothing, and fails, where nothing would run.
INSTALLED = [name for name, package in RUNTIMES.items() if importlib.util.find_spec(package)]


@pytest.fixture(params=INSTALLED)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(model: bytes) -> Path:
        path = tmp_path / "tiny.tflite"
        path.write_bytes(model)
        return path

    return write


@pytest.fixture
def engine(runtime: str, write: Write) -> Iterator[LiteRtEngine]:
    with closing(LiteRtEngine(write(tiny_models.reshape_model()), runtime=runtime)) as engine:
        yield engine


def picture(*values: int) -> Pixels:
    """Return a 2 x 2 picture whose channels are `values`, the rest 0."""
    return np.array([*values, *[0] * (12 - len(values))], np.uint8).reshape(2, 2, 3)


def test_the_input_is_read_from_the_model(runtime: str, write: Write) -> None:
    path = write(tiny_models.reshape_model("uint8", shape=(1, 5, 7, 3)))
    with closing(LiteRtEngine(path, runtime=runtime)) as engine:
        spec = engine.info.input
        assert (spec.shape, spec.dtype) == ((1, 5, 7, 3), "uint8")
        assert (spec.scale, spec.zero_point) == (1 / 256, 0)
        assert engine.info.input_px == (7, 5)
        assert [output.shape for output in engine.info.outputs] == [(1, 105)]
        (output,) = engine.run(np.zeros((5, 7, 3), np.uint8))
        assert output.shape == (105,)


def test_info_names_what_computes(runtime: str, engine: LiteRtEngine) -> None:
    package = RUNTIMES[runtime].replace("_", "-")
    assert engine.info.runtime.startswith(f"{package} ")
    assert engine.info.runtime == find_runtime(runtime)[0]
    assert (engine.info.backend, engine.info.model) == ("cpu", "tiny")


@pytest.mark.parametrize(
    ("dtype", "codes"),
    [("int8", [-128, -1, 0, 127]), ("uint8", [0, 127, 128, 255])],
)
def test_codes_at_the_ends_of_the_range(
    runtime: str, write: Write, dtype: str, codes: list[int]
) -> None:
    path = write(tiny_models.reshape_model(dtype))
    with closing(LiteRtEngine(path, runtime=runtime)) as engine:
        (output,) = engine.run(picture(0, 127, 128, 255))
        assert output.dtype == dtype
        assert output[:4].tolist() == codes
        # scale 1/256: by hand, a pixel stands for itself over 256
        real = scores(output, engine.info.outputs[0])
        assert real[:4].tolist() == [0.0, 127 / 256, 0.5, 255 / 256]
        assert [label.index for label in decode(real, (), 2, 0.0)] == [3, 2]


def test_a_zero_point_far_from_the_code(runtime: str, write: Write) -> None:
    # 127 - (-128) does not fit int8: subtracting in the output's own type would give -1.
    path = write(tiny_models.reshape_model("int8", flat_zero_point=127))
    with closing(LiteRtEngine(path, runtime=runtime)) as engine:
        (output,) = engine.run(picture(255))
        spec = engine.info.outputs[0]
        assert (spec.zero_point, output[0]) == (127, 127)
    low = scores(output.astype(np.int8), spec)
    assert low[0] == pytest.approx(1 / (1 + 11 * np.exp(-255 / 256)))  # below 0: it gets a softmax


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"),
    [
        ("uint8", 1 / 128, 128),
        ("uint8", 0.007843, 127),
        ("int8", 0.007843, -1),
        ("uint8", 1 / 255, 0),
        ("int8", 1 / 255, -128),
        ("uint8", 1.0, 0),
        ("int8", 1.0, 0),
        ("uint8", 4.758 / 255, 114),  # ImageNet's mean and deviation
    ],
)
def test_an_input_that_spans_a_picture_is_taken(
    runtime: str, write: Write, dtype: str, scale: float, zero_point: int
) -> None:
    path = write(tiny_models.reshape_model(dtype, scale=scale, zero_point=zero_point))
    LiteRtEngine(path, runtime=runtime).close()


@pytest.mark.parametrize(("scale", "zero_point"), [(0.5, 3), (1 / 1000, 0), (1 / 128, 0)])
def test_an_input_that_spans_no_picture_is_refused(
    runtime: str, write: Write, scale: float, zero_point: int
) -> None:
    path = write(tiny_models.reshape_model("uint8", scale=scale, zero_point=zero_point))
    with pytest.raises(ModelError, match="codes stand for") as refused:
        LiteRtEngine(path, runtime=runtime)
    assert "quantise it again" in refused.value.hint


def test_float_output_is_taken_as_it_is(runtime: str, write: Write) -> None:
    path = write(tiny_models.reshape_model(float_output=True))
    with closing(LiteRtEngine(path, runtime=runtime)) as engine:
        (output,) = engine.run(picture(64, 255))
        assert output.dtype == np.float32
        assert scores(output, engine.info.outputs[0])[:2].tolist() == [0.25, 255 / 256]


def test_outputs_belong_to_the_caller(engine: LiteRtEngine) -> None:
    (first,) = engine.run(picture(10))
    kept = first.copy()
    (second,) = engine.run(picture(200))
    assert first.tolist() == kept.tolist()
    assert first.tolist() != second.tolist()


def test_the_same_picture_gives_the_same_answer(engine: LiteRtEngine) -> None:
    (first,), (second,) = engine.run(picture(1, 2, 3)), engine.run(picture(1, 2, 3))
    assert first.tolist() == second.tolist()


def test_the_picture_is_not_changed(engine: LiteRtEngine) -> None:
    pixels = picture(1, 2, 3)
    pixels.flags.writeable = False
    engine.run(pixels)
    assert pixels.reshape(-1)[:3].tolist() == [1, 2, 3]


def test_pixels_that_are_a_view(engine: LiteRtEngine) -> None:
    whole = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    view = whole[::2, ::-2]
    (output,) = engine.run(view)
    assert (output.astype(int) + 128).tolist() == view.reshape(-1).tolist()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 3, 3), np.uint8),
        np.zeros((1, 2, 2, 3), np.uint8),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 3), np.float32),
    ],
    ids=["size", "batch", "grey", "float"],
)
def test_a_picture_that_does_not_fit(engine: LiteRtEngine, pixels: Pixels) -> None:
    with pytest.raises(EngineError, match=r"takes uint8 pixels of shape \(2, 2, 3\), got"):
        engine.run(pixels)
    engine.run(picture())  # and it still works


def test_one_engine_used_from_another_thread(engine: LiteRtEngine) -> None:
    (here,) = engine.run(picture(9))
    answers: list[list[int]] = []
    thread = threading.Thread(target=lambda: answers.append(engine.run(picture(9))[0].tolist()))
    thread.start()
    thread.join()
    assert answers == [here.tolist()]


def test_a_missing_file(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent") as caught:
        LiteRtEngine(tmp_path / "absent.tflite", runtime=runtime)
    assert "No such file" in str(caught.value)


def test_a_directory(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="directory"):
        LiteRtEngine(tmp_path, runtime=runtime)


REFUSED = {
    "empty": (b"", "not a TensorFlow Lite model"),
    "text": (b"# labels\nbackground\n", "not a TensorFlow Lite model"),
    # Where the cut lies decides what the interpreter notices; each of these two does notice.
    "cut-in-the-header": (tiny_models.reshape_model()[:20], "refuses it"),
    "cut-in-the-graph": (tiny_models.reshape_model()[:200], "refuses it"),
    "compiled-for-the-edge-tpu": (tiny_models.edgetpu_model(), "compiled for the Edge TPU"),
    "float-input": (tiny_models.reshape_model("float32"), "input is float32; int8 and uint8"),
    "dynamic-batch": (tiny_models.reshape_model(signature=(-1, 2, 2, 3)), r"\[-1, 2, 2, 3\]"),
    "dynamic-size": (tiny_models.reshape_model(signature=(1, -1, -1, 3)), r"\[1, -1, -1, 3\]"),
    "batch-of-2": (tiny_models.reshape_model(shape=(2, 2, 2, 3)), r"\[2, 2, 2, 3\]"),
    "grey": (tiny_models.reshape_model(shape=(1, 2, 2, 1)), r"\[1, 2, 2, 1\]"),
    "flat-input": (tiny_models.reshape_model(shape=(1, 12)), r"\[1, 12\]"),
    "no-input": (tiny_models.no_input_model(), "0 inputs"),
    "two-inputs": (tiny_models.two_input_model(), "2 inputs"),
    "no-output": (tiny_models.no_output_model(), r"output shapes are \[\]"),
    "output-without-batch": (
        tiny_models.reshape_model(flat=(12,)),
        r"output shapes are \[\[12\]\]",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_run_is_refused_with_the_reason(
    runtime: str, write: Write, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    model, reason = REFUSED[what]
    path = write(model)
    with pytest.raises(ModelError, match=reason) as caught:
        LiteRtEngine(path, runtime=runtime)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # nothing said past us


def test_loading_is_quiet(runtime: str, write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(LiteRtEngine(write(tiny_models.reshape_model()), runtime=runtime)):
        pass
    assert capfd.readouterr() == ("", "")


def test_dtypes_tell_a_full_integer_model(runtime: str, write: Write) -> None:
    with closing(LiteRtEngine(write(tiny_models.reshape_model()), runtime=runtime)) as engine:
        assert "float32" not in engine.dtypes()
    path = write(tiny_models.reshape_model(float_output=True))
    with closing(LiteRtEngine(path, runtime=runtime)) as engine:
        assert "float32" in engine.dtypes()


def test_closing_twice(engine: LiteRtEngine) -> None:
    engine.close()
    engine.close()
