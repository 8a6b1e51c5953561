"""What a working Edge TPU does, seen by the real runtime: the stand-in, or a real one.

`make test-hw` runs these on a real Coral. Two variables say on what to run:

`EDGETPU_HARDWARE=1`: the machine's own libedgetpu and device, instead of the stand-in.
`EDGETPU_MODEL=PATH`: a compiled model; its CPU twin beside it, without `_edgetpu` in its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edge_app import catalog
from edge_app.domain import Tensor
from edge_app.engine.litert import EDGETPU_OP, LiteRtEngine
from edge_app.errors import ModelError
from edge_app.task.image import fit, read_image
from tests.standin.edgetpu import build, device
from tests.standin.edgetpu.compile import compiled, same_ends
from tests.standin.edgetpu.host import Host, HostError

HARDWARE = os.environ.get("EDGETPU_HARDWARE") == "1"
DEFAULT_ON_HARDWARE = "mobilenet_v2_1.0_224_quant"
# The device's arithmetic is not the CPU's: what may differ is the last bits, not the answer.
SAME_ON_HARDWARE = 32


@dataclass(frozen=True, slots=True)
class Rig:
    """A device to test on. `twin` is None when nobody knows what the outputs should be."""

    environment: Mapping[str, str]
    model: Path
    twin: Path | None


@pytest.fixture(scope="module")
def has_device(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where a real device is asked for and there is none."""
    if not HARDWARE:
        return
    with Host(tmp_path_factory.mktemp("look"), {}) as host:
        try:
            found = host.devices()
        except HostError as error:
            pytest.skip(f"no libedgetpu on this machine ({error})")
    if not found:
        pytest.skip("libedgetpu lists no Edge TPU on this machine")


@pytest.fixture(scope="module")
def models(has_device: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path | None]:
    """Return a compiled model, and its CPU twin if there is one."""
    if given := os.environ.get("EDGETPU_MODEL"):
        twin = Path(given.replace("_edgetpu.tflite", ".tflite"))
        return Path(given), twin if twin.is_file() and str(twin) != given else None
    if HARDWARE:
        return _installed_pair()
    cpu = catalog.resolve("mobilenet_v2_1.0_224").cpu
    assert cpu is not None
    model = tmp_path_factory.mktemp("compiled") / "mobilenet_v2_1.0_224_edgetpu.tflite"
    model.write_bytes(compiled(cpu.read_bytes()))
    return model, cpu


def _installed_pair() -> tuple[Path, Path | None]:
    try:
        files = catalog.resolve(DEFAULT_ON_HARDWARE)
    except ModelError as error:
        pytest.skip(f"{error}: {error.hint}; or make test-hw MODEL=PATH")
    if files.edgetpu is None:
        pytest.skip(f"{DEFAULT_ON_HARDWARE} is installed without its compiled twin")
    return files.edgetpu, files.cpu


@pytest.fixture(scope="module")
def rig(
    has_device: None, models: tuple[Path, Path | None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    model, twin = models
    if HARDWARE:
        yield Rig({}, model, twin)
        return
    folder = tmp_path_factory.mktemp("rig")
    if twin is None:
        twin = folder / "same_ends.tflite"
        twin.write_bytes(same_ends(model.read_bytes()))
    with device(folder / "tpu", twin, build()) as tpu:
        yield Rig(tpu.environment, model, twin)


@pytest.fixture
def host(tmp_path: Path, rig: Rig) -> Iterator[Host]:
    with Host(tmp_path, rig.environment) as host:
        yield host


def test_the_device_is_listed(host: Host) -> None:
    assert [kind for kind, _ in host.devices()] != []
    assert all(path for _, path in host.devices())


def test_the_graph_shows_that_the_device_computes(host: Host, rig: Rig) -> None:
    assert EDGETPU_OP in host.open(rig.model)


def test_the_outputs_are_the_twins(host: Host, rig: Rig, sample_photos: list[Path]) -> None:
    if rig.twin is None:
        pytest.skip("no CPU twin beside the compiled model")
    if set(host.open(rig.model)) - {EDGETPU_OP, "DELEGATE"}:
        pytest.skip("the compiled model ends on the CPU: its outputs are not the device's")
    engine = LiteRtEngine(rig.twin)
    assert sample_photos
    for photo in sample_photos:
        pixels = fit(read_image(photo), engine.info.input_px).pixels
        expected = engine.run(pixels)
        codes = pixels if engine.info.input.dtype == "uint8" else (pixels ^ 0x80).view(np.int8)
        outputs = host.run(codes[np.newaxis])
        assert len(outputs) == len(expected)
        for output, right in zip(outputs, expected, strict=True):
            assert same(output[0], right), photo.name


def same(output: Tensor, right: Tensor) -> bool:
    if not HARDWARE:
        return bool((output == right).all())
    difference = np.abs(output.astype(int) - right.astype(int))
    return bool(difference.max() <= SAME_ON_HARDWARE and output.argmax() == right.argmax())


@pytest.mark.parametrize("options", [{}, {"device": "usb"}, {"device": ":0"}])
def test_what_opens_it(host: Host, rig: Rig, options: dict[str, str]) -> None:
    if options.get("device") == "usb" and 1 not in [kind for kind, _ in host.devices()]:
        pytest.skip("the device is not on USB")
    host.open(rig.model, **options)


@pytest.mark.parametrize("name", ["0", "usb0", "usb:9", "pci:9", "gpu", ":-1"])
def test_a_device_that_is_not_there_cannot_be_opened(host: Host, rig: Rig, name: str) -> None:
    with pytest.raises(HostError, match="ValueError: Failed to load delegate"):
        host.open(rig.model, device=name)


def test_it_is_free_again_when_its_host_is_killed(tmp_path: Path, host: Host, rig: Rig) -> None:
    host.open(rig.model)
    with Host(tmp_path, rig.environment) as other:
        with pytest.raises(HostError, match="ValueError: Failed to load delegate"):
            other.open(rig.model)
        host.kill()
        other.open(rig.model)


def test_a_model_that_is_not_compiled_runs_on_the_cpu_unnoticed(host: Host, rig: Rig) -> None:
    if rig.twin is None:
        pytest.skip("no CPU twin beside the compiled model")
    assert EDGETPU_OP not in host.open(rig.twin)


def test_200_openings_leave_no_descriptor(host: Host, rig: Rig) -> None:
    before = host.reopen(3, rig.model)
    assert host.reopen(200, rig.model) <= before
