"""`edge-app models list / verify / add`. `inspect` and `fetch` have modules of their own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_app.catalog import (
    ModelFiles,
    added,
    catalogue,
    files_dir,
    installed_dir,
    passport,
    resolve,
)
from edge_app.errors import EXIT_OK, EXIT_UNAVAILABLE, ModelError, UsageError
from edge_app.verify import Fault, check_files, open_verified, verify_model

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def list_models(*, as_json: bool = False) -> int:
    """Print every model of the catalogue and of one's own."""
    records = [_describe(name) for name in _names()]
    if as_json:
        print("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
        return EXIT_OK
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # 80 columns, just
    for heading in ("NAME", "TASK", "PX", "MACS", "PARAMS", "TPU", "INSTALLED", "VERIFIED"):
        table.add_column(heading, overflow="fold")
    for record in records:
        table.add_row(*_row(record))
    Console().print(table)
    return EXIT_OK


def verify(model: str | None = None, *, as_json: bool = False) -> int:
    """Hold one model, or every installed one, to its passport. Returns 69 when any fails.

    Raises ModelError when `model` is unknown or not installed.
    """
    if model:
        records = [_verified(resolve(model))]
    else:
        records = [record for name in _names() if (record := _verified_if_installed(name))]
    for record in records:
        print(json.dumps(record, ensure_ascii=False) if as_json else _told(record))
    return EXIT_OK if all(record["ok"] for record in records) else EXIT_UNAVAILABLE


def add(path: Path, *, labels: Path, images: Sequence[Path], name: str | None = None) -> int:
    """Copy a model with its Edge TPU twin, labels and golden images, and write its passport.

    One of the same name added earlier is replaced. Raises ModelError with the reason when the
    model cannot be relied on, UsageError when it cannot be called `name`.
    """
    from edge_app.tools.passports import install_model, write_passport

    files = resolve(str(path), str(labels))
    name = name or files.name
    if not _NAME.fullmatch(name) or name in catalogue():
        raise UsageError(
            f"a model cannot be called {name!r}",
            hint="--name takes letters, digits, '.', '_' and '-', and no name of the catalogue",
        )
    own = replace(files, name=name)
    pictures = {
        f"{name}.golden-{number}{image.suffix.lower()}": image
        for number, image in enumerate(images, start=1)
    }
    engine = open_verified(own)
    try:
        written = write_passport(own, labels, engine, pictures)
    finally:
        engine.close()
    install_model(installed_dir(), written, own, {**pictures, written.labels.file: labels})
    return verify(name)


def _names() -> list[str]:
    return list(dict.fromkeys((*catalogue(), *added())))


def _installed(name: str) -> ModelFiles | None:
    """The model's files; None when it was not fetched."""
    found, folder = passport(name)
    return resolve(name) if (files_dir(found, folder) / found.cpu.file).is_file() else None


def _describe(name: str) -> dict[str, Any]:
    """What `list` says of one model. `verified`: its files have their hashes; null: not here."""
    try:
        found, _ = passport(name)
        files = _installed(name)
    except ModelError as error:  # its passport, or a file that goes with it, is damaged
        return {"name": name, "installed": True, "verified": False, "faults": [str(error)]}
    faults = check_files(files) if files else []
    return {
        "name": name,
        "task": found.task,
        "input_px": list(found.input_px),
        "macs": found.macs,
        "params": found.params,
        "edgetpu": "none" if not found.edgetpu else "here" if files and files.edgetpu else "known",
        "licence": found.licence,
        "source": found.source,
        "installed": files is not None,
        "verified": not faults if files else None,
        "faults": [fault.message for fault in faults],
    }


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    if "task" not in record:
        return (record["name"], "", "", "", "", "", "yes", "NO")
    return (
        record["name"],
        record["task"],
        _size(*record["input_px"]),
        _millions(record["macs"]),
        _millions(record["params"]),
        record["edgetpu"],
        "yes" if record["installed"] else "-",
        {True: "yes", False: "NO", None: "-"}[record["verified"]],
    )


def _size(width_px: int, height_px: int) -> str:
    return str(width_px) if width_px == height_px else f"{width_px}x{height_px}"


def _millions(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.3g}M"


def _verified_if_installed(name: str) -> dict[str, Any] | None:
    try:
        files = _installed(name)
    except ModelError as error:  # the other models are verified all the same
        return {"name": name, "ok": False, "faults": [asdict(Fault("file", str(error)))]}
    return _verified(files) if files else None


def _verified(files: ModelFiles) -> dict[str, Any]:
    start_ns = time.monotonic_ns()
    faults = verify_model(files)
    return {
        "name": files.name,
        "ok": not faults,
        "faults": [asdict(fault) for fault in faults],
        "passport": files.passport is not None,
        "golden_images": len(files.passport.golden) if files.passport else 0,
        "took_ms": round((time.monotonic_ns() - start_ns) / 1e6, 1),
    }


def _told(record: dict[str, Any]) -> str:
    name = record["name"]
    if not record["ok"]:
        faults = (f"{fault['check']}: {fault['message']}" for fault in record["faults"])
        return "\n".join(f"{name}: REFUSED, {fault}" for fault in faults)
    if not record["passport"]:
        return f"{name}: it runs; without a passport (`models add`) its answers cannot be checked"
    golden = f"{record['golden_images']} golden images" if record["golden_images"] else "files only"
    return f"{name}: as its passport says ({golden}, {record['took_ms']:.0f} ms)"
