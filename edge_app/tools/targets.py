"""What a model's name on the command line stands for: a file, or a network yet to be written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_app import catalog
from edge_app.errors import ModelError
from edge_app.models.builder.network import by_name


@dataclass(frozen=True, slots=True)
class Target:
    """A model's file, or else (`path` None) the network to write with random weights."""

    name: str
    path: Path | None


def find_target(name_or_path: str) -> Target:
    """A path, an installed model of the catalogue, or `mobilenet_v1_0.5_160`, in that order.

    Raises ModelError.
    """
    path = Path(name_or_path)
    if path.exists() or path.suffix == catalog.SUFFIX or path.parent != Path():
        return Target(path.stem, path)
    try:
        files = catalog.resolve(name_or_path)
    except ModelError as not_installed:
        try:
            by_name(name_or_path)
        except ModelError:
            # An uninstalled model of another architecture: its own message says how to get it.
            raise not_installed from None
        return Target(name_or_path, None)
    return Target(name_or_path, files.cpu or files.edgetpu)
