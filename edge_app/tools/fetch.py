"""`edge-app models fetch`: the files of a catalogued model, from its publisher or a mirror."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from edge_app.catalog import (
    TWIN_SUFFIX,
    ModelFile,
    files_dir,
    known_sha256,
    passport,
    remember_sha256,
)
from edge_app.errors import EXIT_OK, ModelError, UsageError
from edge_app.files import sha256_of
from edge_app.tools.download import download
from edge_app.tools.models import verify
from edge_app.verify import check_kind


def fetch(model: str, *, trust_on_first_use: bool = False, source: str = "") -> int:
    """Download the files of a catalogued model that are not here yet, and verify it.

    `source`, a URL or a folder, takes the place of the catalogue's address: for a mirror, or a
    machine without a network. Raises ModelError, DownloadError.
    """
    found, folder = passport(model)
    if not found.base_url:
        print(f"{model} is here already: it was not downloaded, so there is nothing to fetch")
        return EXIT_OK
    home = files_dir(found, folder)
    unknown = [file.file for file in found.files if not known_sha256(file, home / file.file)]
    if unknown and not trust_on_first_use:
        raise ModelError(
            f"the catalogue has no hash for {', '.join(unknown)}, so a wrong file would pass",
            hint="--trust-on-first-use accepts what comes now, and holds it to that from then on",
        )
    base_url = _base_url(source) if source else found.base_url
    with Progress(
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        for file in found.files:
            _fetch_file(file, base_url + file.file, home / file.file, progress)
    return verify(model)


def _base_url(source: str) -> str:
    if "://" not in source:
        return Path(source).resolve().as_uri() + "/"
    if not source.startswith(("http://", "https://", "file://")):
        raise UsageError(f"--from {source}: a folder or an http(s) address is allowed")
    return source.rstrip("/") + "/"


def _fetch_file(file: ModelFile, url: str, target: Path, progress: Progress) -> None:
    expected = known_sha256(file, target)
    if expected and target.is_file() and sha256_of(target) == expected:
        return
    task = progress.add_task(file.file, total=file.bytes or None)

    def show(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total or None)

    download(
        url,
        target,
        sha256=expected,
        size_bytes=file.bytes,
        check=None if expected else _trial,
        progress=show,
    )
    if not expected:
        remember_sha256(target)


def _trial(path: Path) -> None:
    """Refuse a file nobody vouches for when it is no model, or crashes the runtime."""
    from edge_app.engine.trial import try_model

    compiled = TWIN_SUFFIX in path.name
    for fault in check_kind(path, compiled=compiled):
        raise ModelError(fault.message, hint="nothing was installed")
    if not compiled:
        try_model(path)
