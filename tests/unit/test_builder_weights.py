"""Reading a checkpoint executes nothing and survives any damage; folding changes no result."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_app.errors import ModelError
from edge_app.models.builder.blocks import Layer
from edge_app.models.builder.checkpoint import read_checkpoint
from edge_app.models.builder.network import mobilenet_v1, mobilenet_v2
from edge_app.models.builder.reference import real_input, run_layer
from edge_app.models.builder.weights import (
    LayerWeights,
    check_weights,
    fold_batch_norm,
    imagenet_weights,
    random_weights,
    take_pixels,
)

TENSORS: dict[str, NDArray[Any]] = {
    "first": np.arange(6, dtype=np.float32).reshape(2, 3),
    "counter": np.array([7], np.int64),
}


class Storage:
    """Stands for a torch storage while a checkpoint is written."""

    def __init__(self, kind: str, key: str, size: int) -> None:
        self.persistent = ("storage", getattr(sys.modules["torch"], kind), key, "cpu", size, None)


class Tensor:
    """Pickles as torch's tensors do: a call of `torch._utils._rebuild_tensor_v2`."""

    def __init__(self, storage: Storage, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments: tuple[Any, ...] = (storage, 0, shape, strides, False, OrderedDict())

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"].__dict__["_rebuild_tensor_v2"], self.arguments


class CheckpointPickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> Any:
        return obj.persistent if isinstance(obj, Storage) else None


@pytest.fixture(scope="module")
def torch_names() -> Iterator[None]:
    """Modules with torch's names, for the pickler to refer to."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def rebuild() -> None: ...

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils.__dict__["_rebuild_tensor_v2"] = rebuild
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        yield


def write_checkpoint(
    tensors: dict[str, NDArray[Any]], magic: int = 0x1950A86A20F9469CFC6C
) -> bytes:
    stream = io.BytesIO()
    for value in (magic, 1001, {"little_endian": True}):
        pickle.dump(value, stream, protocol=2)
    state = OrderedDict()
    for key, (name, values) in enumerate(tensors.items()):
        kind = "FloatStorage" if values.dtype == np.float32 else "LongStorage"
        strides = tuple(stride // values.itemsize for stride in values.strides)
        state[name] = Tensor(Storage(kind, str(key), values.size), values.shape, strides)
    CheckpointPickler(stream, protocol=2).dump(state)
    pickle.dump([str(key) for key in range(len(tensors))], stream, protocol=2)
    for values in tensors.values():
        stream.write(values.size.to_bytes(8, "little") + values.tobytes())
    return stream.getvalue()


@pytest.fixture(scope="module")
def checkpoint(torch_names: None) -> bytes:
    return write_checkpoint(TENSORS)


def test_a_checkpoint_is_read_as_it_was_written(checkpoint: bytes) -> None:
    tensors = read_checkpoint(checkpoint)
    assert list(tensors) == list(TENSORS)
    for name, values in TENSORS.items():
        assert tensors[name].dtype == values.dtype
        np.testing.assert_array_equal(tensors[name], values)


def test_a_checkpoint_that_would_run_code_is_refused() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.putenv, ("EDGE_APP_BOMB", "went off")

    with pytest.raises(ModelError, match=r"posix\.putenv has no place in a checkpoint"):
        read_checkpoint(pickle.dumps(Bomb()))


def test_another_magic_number_is_refused(torch_names: None) -> None:
    with pytest.raises(ModelError, match="not a legacy torch checkpoint"):
        read_checkpoint(write_checkpoint(TENSORS, magic=42))


def test_a_transposed_tensor_is_refused(torch_names: None) -> None:
    with pytest.raises(ModelError, match="strides"):
        read_checkpoint(write_checkpoint({"turned": TENSORS["first"].T}))


def test_a_checkpoint_cut_short_is_refused_wherever_the_cut_is(checkpoint: bytes) -> None:
    for length in range(len(checkpoint)):
        with pytest.raises(ModelError, match=r"checkpoint"):
            read_checkpoint(checkpoint[:length])


def test_another_file_is_no_checkpoint_of_ours(checkpoint: bytes) -> None:
    with pytest.raises(ModelError, match="sha256"):
        imagenet_weights(mobilenet_v2(), checkpoint)


def test_folding_batch_norm_changes_no_result() -> None:
    generator = np.random.default_rng(0)
    layer = Layer("a", "conv", ("input",), (5, 5, 3), (5, 5, 4), 3, 1, (1, 1))
    tensors = {
        "k.weight": generator.standard_normal((4, 3, 3, 3)),
        "n.weight": generator.standard_normal(4),
        "n.bias": generator.standard_normal(4),
        "n.running_mean": generator.standard_normal(4),
        "n.running_var": generator.random(4) + 0.1,
    }
    picture = generator.standard_normal((1, 5, 5, 3)).astype(np.float32)
    plain = LayerWeights(tensors["k.weight"].transpose(0, 2, 3, 1), np.zeros(4))
    convolved = run_layer(layer, plain, [picture])
    normalised = (convolved - tensors["n.running_mean"]) / np.sqrt(tensors["n.running_var"] + 1e-5)
    expected = normalised * tensors["n.weight"] + tensors["n.bias"]
    folded = fold_batch_norm(tensors, "k", "n", layer)
    np.testing.assert_allclose(run_layer(layer, folded, [picture]), expected, atol=1e-4)


def test_the_stem_takes_pixels_as_it_took_normalised_ones() -> None:
    generator = np.random.default_rng(0)
    layer = Layer("stem", "conv", ("input",), (9, 9, 3), (4, 4, 8), 3, 2)
    trained = LayerWeights(generator.standard_normal((8, 3, 3, 3)), generator.standard_normal(8))
    picture = generator.integers(0, 256, (1, 9, 9, 3), np.uint8)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((picture / 255 - mean) / deviation).astype(np.float32)
    expected = run_layer(layer, trained, [normalised])
    found = run_layer(layer, take_pixels(trained), [real_input(picture)])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_random_weights_fit_their_network_and_only_it() -> None:
    network = mobilenet_v1(0.25, 64)
    weights = random_weights(network)
    check_weights(network, weights)
    np.testing.assert_array_equal(random_weights(network)["stem"].kernel, weights["stem"].kernel)
    assert (random_weights(network, seed=1)["stem"].kernel != weights["stem"].kernel).all()
    with pytest.raises(ModelError, match="stem needs"):
        check_weights(mobilenet_v1(0.5, 64), weights)
