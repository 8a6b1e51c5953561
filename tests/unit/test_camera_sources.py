"""What a source in the configuration means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.camera.sources import SCHEMES, is_lossless, parse_source, redacted, stall_bound_s
from edge_app.errors import ConfigError


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("picamera:1", ("picamera", "1")),
        ("v4l2:/dev/video0", ("v4l2", "/dev/video0")),
        ("rtsp://u:p@cam.lan:8554/a?b=c", ("rtsp", "rtsp://u:p@cam.lan:8554/a?b=c")),
        ("rtsps://cam/a", ("rtsps", "rtsps://cam/a")),
        ("file:a:b.mp4", ("file", "a:b.mp4")),
        ("images:/srv/my photos", ("images", "/srv/my photos")),
    ],
)
def test_parse_source(source: str, parsed: tuple[str, str]) -> None:
    assert parse_source(source) == parsed


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("", "allowed: picamera:N"),
        ("picam:0", 'did you mean "picamera:"'),
        ("Images:x", 'did you mean "images:"'),
        ("http://cam/video", "allowed: picamera:N"),
        ("/dev/video0", "allowed: picamera:N"),
        ("picamera:", "after the colon"),
        ("picamera:front", 'write "picamera:0"'),
        ("picamera:²", 'write "picamera:0"'),
        ("v4l2:0", 'write "v4l2:/dev/video0"'),
        ("images:", "after the colon"),
        ("rtsp:cam.lan", "write rtsp://HOST"),
        ("rtsp://:554/a", "write rtsp://HOST"),
        ("rtsp://cam:port/a", "write rtsp://HOST"),
        ("rtsp://u:p[x@cam/a", "write rtsp://HOST"),
    ],
)
def test_what_is_no_source_is_refused_with_a_hint(source: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_source(source)
    assert told in f"{caught.value} {caught.value.hint}"


@given(st.text())
def test_any_text_is_a_source_or_a_config_error(text: str) -> None:
    try:
        scheme, _ = parse_source(text)
    except ConfigError:
        return
    assert scheme in SCHEMES


SECRET = st.text("abcXYZ019!$&'()*+,;=:@%._~-/?#", min_size=1).map(lambda text: f"S{text}S")


@given(user=SECRET, password=SECRET, path=SECRET)
def test_redacted_shows_no_credentials(user: str, password: str, path: str) -> None:
    source = f"rtsp://{user}:{password}@cam.lan:554/{path}?password={password}"
    assert redacted(source) in ("rtsp://cam.lan:554/...", "rtsp://...")


def test_redacted_shows_the_host() -> None:
    assert redacted("rtsp://me:geheim@cam.lan:554/a?b=c") == "rtsp://cam.lan:554/..."
    assert redacted("rtsp://cam.lan") == "rtsp://cam.lan/..."
    assert redacted("rtsp://me:12/34@cam.lan/a") == "rtsp://..."
    assert redacted("file:a@b.mp4") == "file:a@b.mp4"


def test_a_mistyped_address_does_not_show_its_password() -> None:
    for source in ("rstp://u:geheim@cam/a", "rtsp://u:geheim@/a", "rtsp:u:geheim@cam"):
        with pytest.raises(ConfigError) as caught:
            parse_source(source)
        assert "geheim" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("source", "fps", "loop", "lossless"),
    [
        ("images:a", 30, False, True),
        ("file:a", 0, True, True),
        ("file:a", 30, True, False),
        ("rtsp://cam/a", 0, False, False),
        ("picamera:0", 0, True, False),
    ],
)
def test_recordings_without_a_clock_or_played_once_are_lossless(
    source: str, fps: float, loop: bool, lossless: bool
) -> None:
    assert is_lossless(source, fps=fps, loop=loop) is lossless


def test_a_slow_camera_may_take_its_time() -> None:
    assert stall_bound_s(30) == stall_bound_s(0) == 5
    assert stall_bound_s(0.1) == pytest.approx(30)
