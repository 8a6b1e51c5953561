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
# Python 3.11 is Debian 12's, whose python3-picamera2 was compiled for numpy 1; a venv that shows it
# the distribution's packages must not put numpy 2 in front of them. OpenCV 4.12 asks for numpy 2.
CONSTRAINTS = {"cp311": ("numpy<2", "opencv-python-headless<4.12"), "cp313": ()}


def lock(platform: str, tag: str, target: Path) -> None:
    """Resolve the run-time dependencies for one platform into `target`."""
    command = [
        *("uv", "pip", "compile", "pyproject.toml", "--quiet"),
        *("--python-platform", platform, "--python-version", PYTHONS[tag], "--constraints", "-"),
        *("--only-binary", ":all:", "--generate-hashes", "--upgrade"),
        # Nothing that says from where, or when: the files depend on the versions alone.
        *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
        *("--output-file", str(target)),
    ]
    constraints = "\n".join(CONSTRAINTS[tag])
    subprocess.run(
        command, input=constraints, text=True, check=True, cwd=ROOT, stdout=subprocess.DEVNULL
    )


def main() -> int:
    """Write one file for each platform and Python."""
    FOLDER.mkdir(exist_ok=True)
    for machine, platform in PLATFORMS.items():
        for tag in PYTHONS:
            target = FOLDER / f"{tag}-{machine}.txt"
            print(f"locking {target.relative_to(ROOT)} ...", file=sys.stderr)
            lock(platform, tag, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
