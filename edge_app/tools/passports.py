"""Writes passports: what a model answers today, for `edge_app.verify` to hold it to tomorrow."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge_app.catalog import (
    Golden,
    ModelFile,
    ModelFiles,
    Passport,
    catalogue,
    resolve,
    shipped_dir,
)
from edge_app.engine.litert import LiteRtEngine
from edge_app.errors import ModelError
from edge_app.files import sha256_of, write_file
from edge_app.task.classify import decode, scores
from edge_app.task.image import fit, read_image
from edge_app.verify import check_structure, open_verified

TOP_K = 3
THRESHOLD = 0.05  # a class below says nothing about the model
TOLERANCE = 0.1


def model_file(path: Path, name: str = "") -> ModelFile:
    """The entry of the file at `path`, called `name` in the passport."""
    return ModelFile(file=name or path.name, bytes=path.stat().st_size, sha256=sha256_of(path))


def write_passport(
    files: ModelFiles, labels: Path, engine: LiteRtEngine, images: Mapping[str, Path]
) -> Passport:
    """Describe a model that `verify_model` found usable, as it behaves on this machine.

    `images` are files by their names in the passport. Files are called after `files.name`. Raises
    ModelError when the model is not full-integer, or not sure of an image.
    """
    if files.cpu is None:
        raise ModelError(f"{files.name} has no CPU twin; its answers cannot be recorded here")
    width, height = engine.info.input_px
    found = Passport(
        task="classify",
        input_px=(width, height),
        dtype="int8" if engine.info.input.dtype == "int8" else "uint8",
        outputs=tuple(math.prod(spec.shape) for spec in engine.info.outputs),
        cpu=model_file(files.cpu, f"{files.name}.tflite"),
        labels=model_file(labels, f"{files.name}.labels.txt"),
        edgetpu=model_file(files.edgetpu, f"{files.name}_edgetpu.tflite")
        if files.edgetpu
        else None,
        tolerance=TOLERANCE,
        golden=tuple(_golden(engine, path, name) for name, path in images.items()),
    )
    if faults := check_structure(found, engine):
        raise ModelError(
            f"{files.cpu}: {'; '.join(fault.message for fault in faults)}",
            hint="convert it with full-integer quantisation, or run it by its path without one",
        )
    return found


def _golden(engine: LiteRtEngine, path: Path, name: str) -> Golden:
    pixels = fit(read_image(path), engine.info.input_px).pixels
    best = decode(scores(engine.run(pixels)[0], engine.info.outputs[0]), (), TOP_K, THRESHOLD)
    first, second = [*(label.score for label in best), 0.0, 0.0][:2]
    margin = first - second
    # Two scores may each be off by the tolerance; closer ones could change places on the way to
    # another runtime, and the passport would refuse a good model.
    if margin < 2 * TOLERANCE:
        raise ModelError(
            f"{path}: the model is not sure of it (best score {first:.2f}, "
            f"{margin:.2f} more than the next; {2 * TOLERANCE:g} is needed)",
            hint="take a photo that shows one of its classes well",
        )
    return Golden(image=name, top=tuple((label.index, label.score) for label in best))


def to_toml(passport: Passport, table: str = "") -> str:
    """The passport as a TOML document, or as a `table` of one. What is not known is left out."""
    plain = msgspec.to_builtins(passport)
    golden = plain.pop("golden")
    lines = [f"[{table}]"] if table else []
    lines += [
        f"{key} = {_inline(value)}" for key, value in plain.items() if value not in ("", None)
    ]
    for entry in golden:
        lines += ["", f"[[{table}.golden]]" if table else "[[golden]]"]
        lines += [f"{key} = {_inline(value)}" for key, value in entry.items()]
    return "\n".join(lines) + "\n"


def _inline(value: object) -> str:
    if isinstance(value, dict):  # a file: on one line
        return "{ " + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + " }"
    # JSON's texts, numbers and lists are TOML's, too.
    return json.dumps(value, ensure_ascii=False)


def install_model(
    home: Path, passport: Passport, files: ModelFiles, others: Mapping[str, Path]
) -> None:
    """Copy a model's files, and `others` by their names there, to `home`; then its passport.

    Raises ModelError when that cannot be written.
    """
    sources = dict(others)
    for file, path in ((passport.cpu, files.cpu), (passport.edgetpu, files.edgetpu)):
        if file and path:
            sources[file.file] = path
    target = home / f"{files.name}.toml"
    try:
        home.mkdir(parents=True, exist_ok=True)
        contents = {name: path.read_bytes() for name, path in sources.items()}
        # The passport goes first and comes last: nothing half-replaced is ever offered.
        target.unlink(missing_ok=True)
        for name, content in contents.items():
            write_file(home / name, content)
        write_file(target, to_toml(passport).encode())
    except OSError as error:
        raise ModelError(
            f"{error.filename}: {error.strerror}",
            hint="EDGE_APP_MODELS_DIR says where models go; root may write the system's place",
        ) from error


def _shipped(name: str) -> str:
    """The catalogue's entry for the model that ships, with all sample photos as golden images."""
    folder, old = shipped_dir(), catalogue()[name]
    files = resolve(str(folder / old.cpu.file), str(folder / old.labels.file))
    photos = {f"samples/{path.name}": path for path in sorted(folder.glob("samples/*.jpg"))}
    engine = open_verified(files)
    new = write_passport(files, folder / old.labels.file, engine, photos)
    return to_toml(
        msgspec.structs.replace(
            new,
            labels=model_file(folder / old.labels.file),
            architecture=old.architecture,
            macs=old.macs,
            params=old.params,
            licence=old.licence,
            source=old.source,
        ),
        f'model."{name}"',
    )


if __name__ == "__main__":
    print(_shipped(*sys.argv[1:]))
