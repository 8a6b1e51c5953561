"""What a `source` in the configuration means."""

from __future__ import annotations

import difflib
import re
from urllib.parse import urlsplit

from edge_app.errors import ConfigError

SCHEMES = ("picamera", "v4l2", "rtsp", "rtsps", "file", "images")
ALLOWED = "picamera:N, v4l2:/dev/videoN, rtsp://..., file:CLIP or images:DIR"
RECORDED = ("file", "images")


def parse_source(source: str) -> tuple[str, str]:
    """Split into the scheme and what it names (a number, a path; for RTSP the whole URL).

    Raises ConfigError for anything that is no source; does not look whether it exists.
    """
    scheme, colon, rest = source.partition(":")
    if not colon or scheme not in SCHEMES:
        nearest = difflib.get_close_matches(scheme.lower(), SCHEMES, n=1)
        hint = f'did you mean "{nearest[0]}:"?' if nearest else ""
        # Not quoted as it is: a mistyped RTSP address may hold a password.
        raise ConfigError(f'"{scheme}" is no kind of camera source; allowed: {ALLOWED}', hint=hint)
    if scheme in ("rtsp", "rtsps"):
        _check_rtsp(source)
        return scheme, source
    if not rest:
        raise ConfigError(f'"{source}" names nothing after the colon; allowed: {ALLOWED}')
    if scheme == "picamera" and not (rest.isascii() and rest.isdigit()):
        raise ConfigError(f'"{source}": the camera is a number', hint='write "picamera:0"')
    if scheme == "v4l2" and not rest.startswith("/"):
        raise ConfigError(f'"{source}": a device path is wanted', hint='write "v4l2:/dev/video0"')
    return scheme, rest


def _check_rtsp(url: str) -> None:
    hint = "write rtsp://HOST[:PORT]/PATH, with special characters of a password as %XX"
    try:
        parts = urlsplit(url)
        found = bool(parts.hostname) and parts.port != 0
    except ValueError:
        found = False
    if not found:
        raise ConfigError("an RTSP address needs a host and a valid port", hint=hint) from None


def redacted(source: str) -> str:
    """Return the source as it may be shown: of an RTSP address the host and port alone.

    Cheap cameras take the password in the path or the query, so neither is shown; nor is a host
    that may be the first half of a password with a slash in it.
    """
    scheme, _, rest = source.partition(":")
    if scheme not in ("rtsp", "rtsps"):
        return source
    authority, *tail = re.split(r"[/?#]", rest.removeprefix("//"), maxsplit=1)
    if any("@" in part for part in tail):
        return f"{scheme}://..."
    return f"{scheme}://{authority.rpartition('@')[2]}/..."


def is_lossless(source: str, *, fps: float, loop: bool) -> bool:
    """Whether every frame is to be delivered: a recording played once, or one without a clock."""
    scheme, _ = parse_source(source)
    return scheme in RECORDED and (not loop or fps == 0)


def stall_bound_s(fps: float) -> float:
    """How long to wait for a frame before calling the camera stalled: three of a slow camera's."""
    return max(5.0, 3 / fps) if fps > 0 else 5.0
