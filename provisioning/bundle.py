"""Gather everything a site without internet needs into dist/bundle: `make bundle`.

    dist/bundle/wheels/edge_app-*.whl        the appliance
    dist/bundle/wheels/PLATFORM.tar          what it depends on, for each platform asked for
    dist/bundle/models/                      models asked for, besides the one in the wheel
    dist/bundle/systemd/, provisioning/      units, playbooks, lock files
    dist/bundle/SHA256SUMS                   of all of it; the playbooks verify it before use

The folder is a checkout as far as the playbooks are concerned: they run from its provisioning/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from edge_app.files import sha256_of

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "provisioning" / "requirements"
SUMS = "SHA256SUMS"
# What a wheel may say it needs of glibc; the lock files are made for 2.28 and newer.
_GLIBC_MINORS = range(17, 29)
_OWN = ("ca", "inventory.yml")  # a site's, beside the playbooks; there is a role called ca too
_left_behind = shutil.ignore_patterns("__pycache__", ".ansible", "*.whl")


def platforms() -> list[str]:
    """Return what there are lock files for, such as cp313-aarch64."""
    return sorted(path.stem for path in LOCKS.glob("*.txt"))


def download_command(platform: str, target: Path) -> list[str]:
    """Return how pip gets the wheels of one platform, each held to the hash of its lock file."""
    tag, machine = platform.split("-", 1)
    libc = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(target)]
    command += ["--implementation", "cp", "--python-version", tag.removeprefix("cp")]
    for abi in (tag, "abi3", "none"):
        command += ["--abi", abi]
    for name in (*libc, f"manylinux2014_{machine}"):
        command += ["--platform", name]
    return [*command, "--requirement", str(LOCKS / f"{platform}.txt")]


def pack(folder: Path) -> None:
    """Make one file of a folder of files: each file that is copied singly costs a device seconds.

    The same files give the same bytes.
    """
    with tarfile.open(f"{folder}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(folder.iterdir()):
            member = tarfile.TarInfo(path.name)
            member.size, member.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tar.addfile(member, file)
    shutil.rmtree(folder)


def sums(folder: Path) -> str:
    """Return the lines that `sha256sum --check` reads, of all files below `folder` but its own."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(f"{sha256_of(path)}  {path.relative_to(folder)}\n" for path in files)


def fetch_models(names: Sequence[str], target: Path) -> None:
    """Put the files of catalogued models into `target`, verified."""
    environment = os.environ | {"EDGE_APP_MODELS_DIR": str(target)}
    for name in names:
        command = [sys.executable, "-m", "edge_app", "models", "fetch", name]
        subprocess.run(command, check=True, env=environment)


def build(target: Path, wheel: Path, wanted: Sequence[str], models: Sequence[str]) -> None:
    """Make the bundle anew in `target`."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "wheels").mkdir(parents=True)
    shutil.copy(wheel, target / "wheels")
    for platform in wanted:
        print(f"wheels for {platform} ...", file=sys.stderr)
        folder = target / "wheels" / platform
        subprocess.run(download_command(platform, folder), check=True)
        pack(folder)
    (target / "models").mkdir()
    fetch_models(models, target / "models")
    for name in ("systemd", "provisioning"):
        shutil.copytree(ROOT / name, target / name, ignore=not_ours)
    (target / SUMS).write_text(sums(target))


def not_ours(folder: str, names: list[str]) -> set[str]:
    """Say what `copytree` is to leave out of a folder."""
    site = {name for name in names if name in _OWN and Path(folder) == LOCKS.parent}
    return site | set(_left_behind(folder, names))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Gather what a site without internet needs.")
    parser.add_argument(
        "--platform",
        action="append",
        choices=platforms(),
        help="Python and machine of the devices; more than one may be given (default: all)",
    )
    parser.add_argument("--model", action="append", default=[], help="of the catalogue, to fetch")
    parser.add_argument("--target", type=Path, default=ROOT / "dist" / "bundle")
    parser.add_argument("--wheel", type=Path, help="default: the one in dist/")
    args = parser.parse_args()
    wheel = args.wheel or next((ROOT / "dist").glob("edge_app-*.whl"), None)
    if wheel is None:
        parser.error("there is no dist/edge_app-*.whl; `make bundle` makes one first")
    build(args.target, wheel, args.platform or platforms(), args.model)
    size_mb = sum(path.stat().st_size for path in args.target.rglob("*") if path.is_file()) / 1e6
    print(f"{args.target}: {size_mb:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
