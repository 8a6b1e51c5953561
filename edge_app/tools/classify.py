"""`edge-app classify`: load, prepare, predict, decode, for image files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edge_app.camera.quiet import silence_opencv
from edge_app.catalog import resolve
from edge_app.config import Backend, ModelConfig
from edge_app.domain import Engine, Label
from edge_app.engines import open_engine
from edge_app.errors import EXIT_OK, EXIT_UNAVAILABLE, EdgeAppError
from edge_app.task.classify import decode, fit_labels, scores
from edge_app.task.image import fit, read_image


def run(
    images: Sequence[Path],
    *,
    model: str,
    labels: str,
    backend: Backend,
    top_k: int,
    as_json: bool,
) -> int:
    """Print the `top_k` labels of each image; a broken one is reported and the rest still done.

    Returns 1 when any image failed. Raises EdgeAppError when the model cannot be used.
    """
    silence_opencv()
    files = resolve(model, labels)
    engine = open_engine(
        ModelConfig(name=model, labels=labels, backend=backend), files, settle=True
    )
    names = fit_labels(files.labels, engine.info.outputs[0].shape[-1]) if files.labels else ()
    failed = False
    try:
        for image in images:
            try:
                found, timing_ms = _classify(engine, image, names, top_k)
            except EdgeAppError as error:
                failed = True
                _report_failure(image, error, as_json)
                continue
            _report(image, engine, found, timing_ms, as_json)
    finally:
        engine.close()
    return EXIT_UNAVAILABLE if failed else EXIT_OK


def _classify(
    engine: Engine, image: Path, names: Sequence[str], top_k: int
) -> tuple[tuple[Label, ...], dict[str, float]]:
    marks_ns = [time.monotonic_ns()]

    def mark() -> None:
        marks_ns.append(time.monotonic_ns())

    pixels = read_image(image)
    mark()
    fitted = fit(pixels, engine.info.input_px)
    mark()
    outputs = engine.run(fitted.pixels)
    mark()
    found = decode(scores(outputs[0], engine.info.outputs[0]), names, top_k, 0.0)
    mark()
    stages = ("load", "preprocess", "invoke", "postprocess")
    spent = zip(stages, marks_ns, marks_ns[1:], strict=False)
    return found, {stage: round((end - start) / 1e6, 3) for stage, start, end in spent}


def _report(
    image: Path,
    engine: Engine,
    found: Sequence[Label],
    timing_ms: dict[str, float],
    as_json: bool,
) -> None:
    if as_json:
        record = {
            "file": str(image),
            "model": engine.info.model,
            "backend": engine.info.backend,
            "labels": [asdict(label) for label in found],
            "timing_ms": timing_ms,
        }
        print(json.dumps(record))  # in ASCII: a file's name need not be valid UTF-8
        return
    print(f"{image}  ({engine.info.backend}, {timing_ms['invoke']:.1f} ms)")
    for label in found:
        print(f"  {label.score:6.1%}  {label.label}")


def _report_failure(image: Path, error: EdgeAppError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": str(image), "error": str(error)}))
        return
    print(f"{image}  failed", flush=True)
    print(f"edge-app: {error}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr)
