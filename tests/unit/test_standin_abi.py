"""The layout of TensorFlow Lite's C structures that the stand-in Edge TPU was written against."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.standin import edgetpu

SOURCES = Path(edgetpu.__file__).parent
TENSORFLOW_LITE = "tensorflow/lite/core/c/common.h"


def gcc(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["gcc", "-std=c11", "-fsyntax-only", "-x", "c", "-I", str(SOURCES), *options, "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed_headers() -> None:
    """Skip without TensorFlow Lite's headers; $CPATH names a place that gcc does not know."""
    if gcc(f"#include <{TENSORFLOW_LITE}>").returncode:
        pytest.skip("TensorFlow Lite's headers are not installed (Debian: libtensorflow-lite-dev)")


def check(source: str) -> str:
    """Compile `source`; return the errors about the layout."""
    return gcc(source).stderr


def test_the_layout_is_that_of_the_installed_headers(installed_headers: None) -> None:
    assert check((SOURCES / "check_abi.c").read_text()) == ""


@pytest.mark.parametrize(
    ("ours", "moved", "complaint"),
    [
        ("bool is_variable;", "long is_variable;", "the size of TfLiteTensor differs"),
        ("int version;\n    void", "void", "the size of TfLiteRegistration differs"),
        ("void *impl_;", "", "TfLiteContext.ReportError lies elsewhere"),
        ("int64_t flags;", "", "the size of TfLiteDelegate differs"),
    ],
)
def test_a_layout_that_differs_is_found(
    installed_headers: None, ours: str, moved: str, complaint: str
) -> None:
    header = (SOURCES / "tflite_abi.h").read_text()
    assert ours in header
    source = (SOURCES / "check_abi.c").read_text()
    said = check(source.replace('#include "tflite_abi.h"', header.replace(ours, moved)))
    assert complaint in said


@pytest.mark.parametrize(
    ("structure", "size_bytes"),
    [
        ("abi_tensor", 112),
        ("abi_node", 80),
        ("abi_registration", 88),
        ("abi_registration_v1", 64),
        ("abi_delegate", 56),
        ("abi_delegate_params", 32),
    ],
)
def test_sizes_on_a_64_bit_machine(structure: str, size_bytes: int) -> None:
    wrong = gcc(
        '#include "tflite_abi.h"\n'
        f'_Static_assert(sizeof(void *) != 8 || sizeof(struct {structure}) == {size_bytes}, "");'
    )
    assert wrong.stderr == ""
