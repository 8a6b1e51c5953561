"""The catalogue: what each known model is, and where its files are.

A passport says what a model's files must hash to and what it must answer; `edge_app.verify` holds
a model to it. Shipped files live in the package; fetched and added ones in `installed_dir()`.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

import edge_app.models
from edge_app.errors import ModelError
from edge_app.files import is_file, sha256_of, write_file
from edge_app.task.classify import load_labels
from edge_app.validate import nearest

SUFFIX = ".tflite"
TWIN_SUFFIX = "_edgetpu.tflite"

FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=200)]
Sha256 = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Count = Annotated[int, Meta(ge=0)]
Size = Annotated[int, Meta(ge=1)]
Score = Annotated[float, Meta(ge=0, le=1)]
S = TypeVar("S", bound=Struct)


class ModelFile(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a model. An empty `sha256` (and 0 `bytes`): nobody could verify it yet."""

    file: FileName
    bytes: Count = 0
    sha256: Sha256 = ""


class Golden(Struct, frozen=True, forbid_unknown_fields=True):
    """A picture (a path relative to the passport) and its best classes, (index, score) each."""

    image: str
    top: Annotated[tuple[tuple[Count, Score], ...], Meta(min_length=1)]


class Passport(Struct, frozen=True, forbid_unknown_fields=True):
    """What a model is and how it must behave.

    `dtype`: of the input. `outputs`: how many elements each output has; the first holds the
    scores. `base_url`: the files are fetched from there; empty: they are where the passport is.
    `tolerance`: how far a golden score may be off; kernels of different runtimes differ by up to
    about 20 of 256 steps.
    """

    task: Literal["classify"]
    input_px: tuple[Size, Size]
    dtype: Literal["int8", "uint8"]
    outputs: Annotated[tuple[Size, ...], Meta(min_length=1)]
    cpu: ModelFile
    labels: ModelFile
    edgetpu: ModelFile | None = None
    base_url: Annotated[str, Meta(pattern=r"^(https?://.+/)?\Z")] = ""
    architecture: str = ""
    macs: Count | None = None
    params: Count | None = None
    licence: str = ""
    source: str = ""
    tolerance: Score = 0.1
    golden: tuple[Golden, ...] = ()

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """All of the model's files, labels first."""
        return (self.labels, self.cpu) + ((self.edgetpu,) if self.edgetpu else ())


class _Catalogue(Struct, frozen=True, forbid_unknown_fields=True):
    model: dict[str, Passport]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model ready to be opened: its files on this machine, and its passport if it has one.

    `labels` may be empty (classes are then named by their index) or off by a background class;
    `task.classify.fit_labels` fits them to the model's outputs. `labels_file` is the one the
    passport vouches for, None when the user named another. `folder` holds the golden images.
    """

    name: str
    cpu: Path | None
    edgetpu: Path | None
    labels: tuple[str, ...]
    labels_file: Path | None
    passport: Passport | None
    folder: Path


def shipped_dir() -> Path:
    """Where the package keeps its models, in a checkout and in an installation alike."""
    return Path(edge_app.models.__path__[0])


def installed_dir() -> Path:
    """Where fetched and added models live; it need not exist.

    `$EDGE_APP_MODELS_DIR`, else `$STATE_DIRECTORY/models` (set by systemd), else
    `/var/lib/edge-app/models` for root, else `$XDG_DATA_HOME/edge-app/models`.
    """
    if own := os.environ.get("EDGE_APP_MODELS_DIR"):
        return Path(own)
    if state := os.environ.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0]) / "models"
    if os.geteuid() == 0:
        return Path("/var/lib/edge-app/models")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "edge-app" / "models"


def catalogue() -> dict[str, Passport]:
    """The passports that ship with the package, by name."""
    path = shipped_dir() / "catalog.toml"
    return _read(_Catalogue, path).model


def added() -> dict[str, Path]:
    """The passports written by `models add`, by name: not read, since one may be damaged."""
    return {path.stem: path for path in sorted(installed_dir().glob("*.toml"))}


def passport(name: str) -> tuple[Passport, Path]:
    """The passport of the model called `name`, and the folder it is in. Raises ModelError."""
    shipped = catalogue()
    if name in shipped:
        return shipped[name], shipped_dir()
    own = added()
    if name in own:
        return _read(Passport, own[name]), own[name].parent
    raise ModelError(
        f"no model is called {name!r}{nearest(name, [*shipped, *own])}",
        hint="`edge-app models list` shows all; or give the path of a .tflite file",
    )


def files_dir(found: Passport, folder: Path) -> Path:
    """Where the files of a passport that is in `folder` are, or would be once fetched."""
    return installed_dir() if found.base_url else folder


def known_sha256(file: ModelFile, path: Path) -> str:
    """The hash `path` must have: its passport's, or that of its first fetch; empty: none known."""
    if file.sha256:
        return file.sha256
    try:
        return _sidecar(path).read_text(encoding="ascii").split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return ""


def remember_sha256(path: Path) -> None:
    """Hold the file at `path`, trusted on its first use, to what it is now."""
    write_file(_sidecar(path), f"{sha256_of(path)}  {path.name}\n".encode())


def _sidecar(path: Path) -> Path:
    # In the format of `sha256sum`, so that a person can check it, too.
    return path.with_name(f"{path.name}.sha256")


def resolve(name_or_path: str, labels: str = "") -> ModelFiles:
    """Find a model by its name, or by the path of its .tflite.

    `labels` is the path of a labels file; with a name it replaces the passport's. Nothing is
    verified here. Raises ModelError for an unknown name, or files that are not there.
    """
    if name_or_path.endswith(SUFFIX):
        return _by_path(Path(name_or_path), labels)
    found, folder = passport(name_or_path)
    home = files_dir(found, folder)
    cpu, labels_path = home / found.cpu.file, Path(labels or home / found.labels.file)
    if not is_file(cpu) or not (labels or is_file(labels_path)):
        raise ModelError(
            f"{name_or_path} is in the catalogue but not installed",
            hint=f"edge-app models fetch {name_or_path}",
        )
    twin = home / found.edgetpu.file if found.edgetpu else None
    return ModelFiles(
        name=name_or_path,
        cpu=cpu,
        edgetpu=twin if twin and is_file(twin) else None,
        labels=load_labels(labels_path),
        labels_file=None if labels else labels_path,
        passport=found,
        folder=folder,
    )


def _by_path(path: Path, labels: str) -> ModelFiles:
    compiled = path.name.endswith(TWIN_SUFFIX)
    stem = path.name.removesuffix(TWIN_SUFFIX if compiled else SUFFIX)
    cpu, twin = path.with_name(stem + SUFFIX), path.with_name(stem + TWIN_SUFFIX)
    if not is_file(path):
        raise ModelError(
            f"{path}: no such file, or none that this user may see",
            hint="give the path of a .tflite file, or a name from `edge-app models list`",
        )
    return ModelFiles(
        name=stem,
        cpu=cpu if is_file(cpu) else None,
        edgetpu=twin if is_file(twin) else None,
        labels=load_labels(Path(labels)) if labels else (),
        labels_file=None,
        passport=None,
        folder=path.parent,
    )


def _read(kind: type[S], path: Path) -> S:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise ModelError(
            f"{path}: cannot be read: {error}",
            hint="write the passport anew with `edge-app models add`, or reinstall edge-app",
        ) from error
