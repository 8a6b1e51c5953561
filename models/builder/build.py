"""Puts a model file together: trained and shipped, or random and only for measuring cost."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

from edge_app.errors import ModelError
from edge_app.models.builder.blocks import EMBEDDING, PROBABILITIES
from edge_app.models.builder.network import by_name, mobilenet_v2
from edge_app.models.builder.quantisation import Quantisation, read_quantisation
from edge_app.models.builder.quantise import encode_float, encode_int8
from edge_app.models.builder.tflite import write_model
from edge_app.models.builder.weights import imagenet_weights, random_weights

MODELS_DIR = Path(__file__).parent.parent
SHIPPED = "mobilenet_v2_1.0_224"
OUTPUTS = (PROBABILITIES, EMBEDDING)
MODEL_FILE = MODELS_DIR / f"{SHIPPED}.tflite"
QUANTISATION_FILE = MODELS_DIR / f"{SHIPPED}.quantisation.json"
PROVENANCE_FILE = MODELS_DIR / "PROVENANCE.toml"

_DESCRIPTION = "MobileNetV2 1.0 224, ImageNet-1000, int8; outputs: probabilities, embedding"
_RANDOM = "RANDOM WEIGHTS, for measuring cost: this classifies nothing"


def build_int8(checkpoint: bytes, quantisation: Quantisation) -> bytes:
    """The shipped model: the same inputs give the same bytes on every machine."""
    network = mobilenet_v2()
    weights = imagenet_weights(network, checkpoint)
    return write_model(encode_int8(network, weights, quantisation), OUTPUTS, _DESCRIPTION)


def build_float(checkpoint: bytes) -> bytes:
    """The network that the shipped model is compared with, in float32."""
    network = mobilenet_v2()
    weights = imagenet_weights(network, checkpoint)
    return write_model(encode_float(network, weights), OUTPUTS, f"{_DESCRIPTION} (float32)")


def build_random(name: str, seed: int = 0) -> bytes:
    """An int8 model of any architecture name, with random weights and made-up ranges.

    It costs what the trained network would cost. Raises ModelError for an unknown name.
    """
    network = by_name(name)
    ranges = {
        layer.name: (0.0, 6.0) if layer.activation == "relu6" else (-8.0, 8.0)
        for layer in network.layers
        if layer.name != PROBABILITIES
    }
    ranges[EMBEDDING] = (0.0, 6.0)
    quantisation = Quantisation(ranges, {}, {}, {})
    encoded = encode_int8(network, random_weights(network, seed), quantisation)
    return write_model(encoded, OUTPUTS, f"{network.name}, int8; {_RANDOM}")


def rebuild(checkpoint: bytes) -> bytes:
    """The shipped model from the committed record.

    Raises ModelError when it is not, bit for bit, the file whose sha256 PROVENANCE.toml gives.
    """
    model = build_int8(checkpoint, read_quantisation(QUANTISATION_FILE))
    expected = committed_sha256(MODEL_FILE.name)
    found = hashlib.sha256(model).hexdigest()
    if found != expected:
        raise ModelError(
            f"built {MODEL_FILE.name} has sha256 {found}, {PROVENANCE_FILE.name} says {expected}",
            hint="after a new calibration: build --accept, then write the sha256 down there",
        )
    return model


def committed_sha256(file_name: str) -> str:
    """What PROVENANCE.toml says. Raises ModelError."""
    try:
        provenance = tomllib.loads(PROVENANCE_FILE.read_text())
        return str(provenance["files"][file_name]["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{PROVENANCE_FILE}: no sha256 of {file_name}: {error}") from error
