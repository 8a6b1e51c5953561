"""Reading one number or one line of the kernel's file systems."""

from __future__ import annotations

import re
from pathlib import Path

_LONGEST = 4096  # an attribute of sysfs fits one page


def read_line(path: Path) -> str | None:
    """Return what `path` holds, without the final newline; None when it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return (file.read(_LONGEST) or b"").decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def read_number(path: Path, *, low: int, high: int) -> int | None:
    """Return the whole number `path` holds; None when it is not one, or not in `low` to `high`."""
    text = read_line(path)
    if text is None or not re.fullmatch(r"-?[0-9]{1,20}", text):
        return None
    number = int(text)
    return number if low <= number <= high else None


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Return what matches `pattern` in `folder`, in the order of the numbers in the names."""

    def by_number(path: Path) -> list[int]:
        return [int(digits) for digits in re.findall(r"[0-9]+", path.name)]

    try:
        return sorted(folder.glob(pattern), key=lambda path: (by_number(path), path.name))
    except OSError:
        return []
