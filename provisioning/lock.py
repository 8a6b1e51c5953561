"""Pin every run-time dependency by hash, for each platform that is installed on: `make lock`.

Install with `pip install --require-hashes -r provisioning/requirements/NAME.txt`, then the
project's own wheel with `--no-deps`. python3-systemd and picamera2 come from the distribution.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "requirements"
# glibc 2.28 and newer: Debian 10 on. LiteRT's own wheels ask for 2.27.
PLATFORMS = {"x86_64": "x86_64-manylinux_2_28", "aarch64": "aarch64-manylinux_2_28"}
PYTHONS = {"cp311": "3.11", "cp313": "3.13"}


def lock(platform: str, python: str, target: Path) -> None:
    """Resolve the run-time dependencies for one platform into `target`."""
    command = [
        *("uv", "pip", "compile", "pyproject.toml", "--quiet"),
        *("--python-platform", platform, "--python-version", python),
        *("--only-binary", ":all:", "--generate-hashes", "--upgrade"),
        # Nothing that says from where, or when: the files depend on the versions alone.
        *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
        *("--output-file", str(target)),
    ]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def main() -> int:
    """Write one file for each platform and Python."""
    FOLDER.mkdir(exist_ok=True)
    for machine, platform in PLATFORMS.items():
        for tag, python in PYTHONS.items():
            target = FOLDER / f"{tag}-{machine}.txt"
            print(f"locking {target.relative_to(ROOT)} ...", file=sys.stderr)
            lock(platform, python, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
