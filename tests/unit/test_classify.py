from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.domain import TensorSpec
from edge_app.errors import ModelError
from edge_app.task.classify import decode, fit_labels, load_labels, scores

INT8 = TensorSpec("out", (1, 4), "int8", 1 / 256, -128)


def test_codes_become_scores() -> None:
    output = np.array([[-128, 0, 127, -1]], np.int8)
    assert scores(output, INT8).tolist() == [0.0, 0.5, 255 / 256, 127 / 256]
    uint8 = TensorSpec("out", (1, 3), "uint8", 1 / 256, 0)
    assert scores(np.array([[0, 128, 255]], np.uint8), uint8).tolist() == [0.0, 0.5, 255 / 256]


def test_any_shape_is_flattened() -> None:
    assert scores(np.zeros((1, 1, 4), np.int8), INT8).shape == (4,)


def test_float_scores_stay() -> None:
    spec = TensorSpec("out", (1, 2), "float32")
    assert scores(np.array([0.25, 0.75], np.float32), spec).tolist() == [0.25, 0.75]


def test_logits_get_a_softmax() -> None:
    spec = TensorSpec("out", (1, 3), "int8", 0.5, 10)
    found = scores(np.array([10, 14, 127], np.int8), spec)  # 0, 2 and 58.5
    assert found.sum() == pytest.approx(1)
    assert found[1] / found[0] == pytest.approx(np.exp(2), rel=1e-4)


def test_logits_are_known_by_their_quantisation_in_every_frame() -> None:
    spec = TensorSpec("out", (1, 3), "int8", 0.1, 0)  # -12.8 to 12.7
    found = scores(np.array([0, 5, 10], np.int8), spec)  # 0, 0.5 and 1: no value tells
    assert found.sum() == pytest.approx(1)
    assert found[2] / found[0] == pytest.approx(np.e, rel=1e-4)


@pytest.mark.parametrize(
    ("scale", "zero_point"), [(1 / 255, -128), (1 / 255, -127), (1 / 254, -127)]
)
def test_a_range_one_step_beyond_scores_is_no_logits(scale: float, zero_point: int) -> None:
    spec = TensorSpec("out", (1, 2), "int8", scale, zero_point)
    found = scores(np.array([zero_point, 127], np.int8), spec)
    assert found.tolist() == pytest.approx([0, scale * (127 - zero_point)])


def test_best_first_and_named() -> None:
    found = decode(np.array([0.1, 0.7, 0.2], np.float32), ("a", "b", "c"), 2, 0.0)
    assert [(label.index, label.label, label.score) for label in found] == [
        (1, "b", 0.7),
        (2, "c", 0.2),
    ]


def test_the_threshold_itself_is_enough() -> None:
    values = np.array([0.5, 0.25, 0.125], np.float32)
    assert [label.index for label in decode(values, (), 3, 0.25)] == [0, 1]
    assert decode(values, (), 3, 0.6) == ()


def test_without_labels_the_index_is_the_name() -> None:
    (found,) = decode(np.array([0.0, 1.0], np.float32), (), 1, 0.0)
    assert found.label == "1"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 40))
def test_ties_keep_the_order_of_their_index(steps: list[int], top_k: int) -> None:
    values = np.array(steps, np.float32) / np.float32(4)
    by_hand = sorted(range(len(steps)), key=lambda index: (-steps[index], index))[:top_k]
    assert [label.index for label in decode(values, (), top_k, 0.0)] == by_hand


def test_labels_that_fit() -> None:
    assert fit_labels(("a", "b"), 2) == ("a", "b")


def test_a_background_class_is_recognised() -> None:
    thousand = tuple(f"class {index}" for index in range(1000))
    assert fit_labels(thousand, 1001) == ("background", *thousand)
    assert fit_labels(("background", *thousand), 1000) == thousand
    assert fit_labels(("Background", *thousand), 1000) == thousand


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("a", "b"), 4),
        (("a", "b", "c"), 2),
        (("background", "a"), 3),  # it has its background already
        ((), 1),
    ],
)
def test_labels_that_do_not_fit(labels: tuple[str, ...], classes: int) -> None:
    with pytest.raises(ModelError, match=f"{len(labels)} labels for a model with {classes} output"):
        fit_labels(labels, classes)


def test_reading_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffbackground\r\n caf\u00e9 \r\n\r\nlast\n\n".encode())
    assert load_labels(path) == ("background", "caf\u00e9", "", "last")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", None])
def test_labels_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"labels\.txt") as caught:
        load_labels(path)
    assert str(caught.value).count("labels.txt") == 1
    assert caught.value.hint
