"""Download of one file: resumable, bounded in time and size, and never half there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO

from edge_app import __version__
from edge_app.errors import EXIT_UNAVAILABLE, EdgeAppError
from edge_app.files import sha256_of, sync_folder

TIMEOUT_S = 20.0
MAX_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 16

Progress = Callable[[int, int], None]  # bytes there, bytes in all (0: not known)


class DownloadError(EdgeAppError):
    """A file could not be downloaded, or is not the one that was asked for."""

    exit_code = EXIT_UNAVAILABLE


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    size_bytes: int = 0,
    check: Callable[[Path], None] | None = None,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
) -> None:
    """Download `url` to `target`, which appears complete and verified, or not at all.

    With `sha256` and `size_bytes`, what an interrupted download left behind is continued; without
    them it cannot be known to be of the same file, so it starts again. `timeout_s` bounds the wait
    for a connection and for each piece of data. `check` may refuse the file by raising. Raises
    DownloadError, or what `check` raises.
    """
    partial = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _sole_writer(target.parent), partial.open("ab") as file:
            if not (sha256 and size_bytes):
                file.truncate(0)
            try:
                _receive(url, file, size_bytes, timeout_s, progress)
            finally:
                file.flush()
                os.fsync(file.fileno())
                if file.tell() == 0:
                    partial.unlink()
            try:
                _require(url, partial, sha256, size_bytes)
                if check:
                    check(partial)
            except EdgeAppError:
                partial.unlink()  # nothing in it is worth continuing
                raise
            partial.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise DownloadError(
            f"{error.filename or target}: cannot be written: {error.strerror or error}",
            hint="EDGE_APP_MODELS_DIR says where models go; root may write the system's place",
        ) from error


@contextlib.contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    # The folder is locked, not the partial file: that one changes its name, and a second process
    # that had opened it before would then write into the finished file.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"{folder}: another process is downloading to it") from None
        yield
    finally:
        os.close(descriptor)


def _receive(
    url: str, file: BinaryIO, size_bytes: int, timeout_s: float, progress: Progress | None
) -> None:
    there = file.seek(0, os.SEEK_END)
    if size_bytes and there >= size_bytes:
        return  # an earlier run got it all; whether it is right is checked next
    with _opened(url, there, timeout_s) as answer:
        if there and answer.status != 206:  # the server does not do ranges: all of it comes
            file.truncate(0)
            there = 0
        total = size_bytes or there + int(answer.headers.get("Content-Length") or 0)
        limit = size_bytes or MAX_BYTES
        for data in _pieces(url, answer, timeout_s):
            there += len(data)
            if there > limit:
                file.truncate(0)
                raise DownloadError(f"{url}: is larger than the {limit} bytes it should have")
            file.write(data)
            if progress:
                progress(there, total)
    if there < total:
        raise DownloadError(
            f"{url}: the connection ended after {there} of {total} bytes",
            hint="run the command again to continue",
        )


@contextlib.contextmanager
def _opened(url: str, start: int, timeout_s: float) -> Iterator[HTTPResponse]:
    headers = {"User-Agent": f"edge-app/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # the scheme is checked by our caller
    try:
        answer = urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(
            f"{url}: the server answers {error.code} {error.reason}",
            hint="is the address still right? --from takes another one, or a folder",
        ) from error
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise DownloadError(
            f"{url}: cannot be reached: {getattr(error, 'reason', error)}", hint=_OFFLINE
        ) from error
    with answer:
        yield answer


def _pieces(url: str, answer: HTTPResponse, timeout_s: float) -> Iterator[bytes]:
    while True:
        try:
            data = answer.read(_CHUNK_BYTES)
        except TimeoutError:
            raise DownloadError(
                f"{url}: nothing came for {timeout_s:g} s",
                hint="run the command again to continue",
            ) from None
        except (OSError, HTTPException) as error:
            raise DownloadError(
                f"{url}: the connection broke: {error}", hint="run the command again to continue"
            ) from error
        if not data:
            return
        yield data


def _require(url: str, path: Path, sha256: str, size_bytes: int) -> None:
    size, found = path.stat().st_size, sha256_of(path)
    if (sha256 and found != sha256) or (size_bytes and size != size_bytes):
        raise DownloadError(
            f"{url}: is not the file the catalogue knows "
            f"({size} bytes, sha256 {found}; should be {size_bytes} bytes, {sha256})",
            hint="nothing was installed; run the command again, and distrust a second failure",
        )


_OFFLINE = "is the network up? on a machine without one, --from FOLDER installs from a folder"
