"""Files: written whole or not at all, also with a power cut; read within bounds."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from edge_app.errors import Unreadable

_SAVE_AS_UTF8 = "save it as UTF-8: editors have it under `save as`, `encoding`"


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file(path: Path) -> bool:
    """Whether there is a file that this user may see; `Path.is_file` raises before Python 3.14."""
    return os.path.isfile(path)  # noqa: PTH113


def read_text(path: Path, max_bytes: int) -> str:
    """Text that a person wrote: UTF-8, with or without a byte-order mark.

    Raises Unreadable, whose message is the reason alone, without the path. Never reads more than
    `max_bytes`: a device may have no end.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise Unreadable(why_not(error), hint=_what_to_do(error)) from error
    if len(data) > max_bytes:
        raise Unreadable(
            f"more than {max_bytes} bytes, or without an end", hint="is it the right file?"
        )
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unreadable("UTF-16, not UTF-8", hint=_SAVE_AS_UTF8)
    data = data.removeprefix(codecs.BOM_UTF8)  # editors on Windows write it
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"not UTF-8: byte 0x{data[error.start]:02x} in line {line}"
        raise Unreadable(found, hint=_SAVE_AS_UTF8) from error


def why_not(error: OSError) -> str:
    """Say why a file could not be opened, without its path."""
    if isinstance(error, IsADirectoryError):
        return "a directory, not a file"
    return (error.strerror or type(error).__name__).removesuffix(" or directory").lower()


def _what_to_do(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "put it there, or correct the path"
    if isinstance(error, IsADirectoryError):
        return "name a file in it"
    if isinstance(error, PermissionError):
        return "let this user read it and enter its folders (chmod, chown), or use one who may"
    return ""


def write_file(path: Path, data: bytes) -> None:
    """Write `path` so that it is there complete, also after a power cut, or not at all."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def runtime_folder(environ: Mapping[str, str]) -> Path | None:
    """Return the service's runtime directory, which systemd names; None without one."""
    name = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(name) if name else None
