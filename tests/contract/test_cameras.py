"""What every camera promises, checked on all of them.

RTSP is served by GStreamer's server. picamera2 is a stand-in for the library and the hardware.
V4L2 has only its refusals tested here: no video device was at hand.
"""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from edge_app.camera.opening import open_camera
from edge_app.camera.quiet import silence_opencv
from edge_app.domain import Camera
from edge_app.errors import CameraEnded, CameraError, CameraStalled

silence_opencv()  # writing clips uses FFmpeg before a camera does

STANDIN = Path(__file__).parents[1] / "standin"
WAIT_S = 10.0
RTSP_NEEDS = "apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good"

MakeCamera = Callable[..., Camera]


class RtspServer:
    """GStreamer's RTSP server in a process of its own, to be frozen and killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["/usr/bin/python3", str(STANDIN / "rtsp_server.py")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line.isdigit():
            _, errors = self.process.communicate()
            pytest.fail(f"no RTSP server: {RTSP_NEEDS}\n{errors}")
        self.source = f"rtsp://user:geheim@127.0.0.1:{line}/red"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module", autouse=True)  # so that no single test is blamed for its process
def shared_rtsp() -> Iterator[RtspServer]:
    server = RtspServer()
    yield server
    server.close()


@pytest.fixture
def rtsp() -> Iterator[RtspServer]:
    """One of its own, for tests that hurt it."""
    server = RtspServer()
    yield server
    server.close()


@pytest.fixture
def picamera2(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(STANDIN))
    sys.modules.pop("picamera2", None)
    library = importlib.import_module("picamera2")
    library.reset()
    yield library
    library.reset()
    for thread in threading.enumerate():
        if thread.name == "picamera2":
            thread.join(WAIT_S)
    sys.modules.pop("picamera2", None)


def red_picture(width: int = 320, height: int = 240) -> cv2.typing.MatLike:
    return np.full((height, width, 3), (0, 0, 255), np.uint8)  # OpenCV's B, G, R


def write_clip(path: Path, frames: int, fps: float = 25, codec: str = "mp4v") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (320, 240))
    assert writer.isOpened()
    for _ in range(frames):
        writer.write(red_picture())
    writer.release()
    return path


def camera_for(source: str, *, fps: float = 0, loop: bool = True) -> Camera:
    return open_camera("main", source, size_px=(640, 480), fps=fps, loop=loop, cover_px=(224, 224))


def drain(camera: Camera, timeout_s: float = WAIT_S) -> None:
    """Read until the camera raises; a broken end would give many frames, not for ever."""
    for _ in range(1000):
        camera.read(timeout_s)


@pytest.fixture(params=["images", "file", "picamera", "rtsp"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeCamera:
    """Make a camera of each kind; all show a red picture."""
    kind: str = request.param
    if kind == "images":
        for i in range(3):
            cv2.imwrite(str(tmp_path / f"{i}.jpg"), red_picture())
        return lambda **options: camera_for(f"images:{tmp_path}", **options)
    if kind == "file":
        clip = write_clip(tmp_path / "red.mp4", 3)
        return lambda **options: camera_for(f"file:{clip}", **options)
    if kind == "picamera":
        request.getfixturevalue("picamera2")
        return lambda **options: camera_for("picamera:0", **options)
    server: RtspServer = request.getfixturevalue("shared_rtsp")
    return lambda **options: camera_for(server.source, **options)


def test_frames_are_red_owned_numbered_and_in_time(make: MakeCamera) -> None:
    before_ns = time.monotonic_ns()
    with make() as camera:
        frames = [camera.read(WAIT_S)]
        first = frames[0].pixels.copy()
        frames += [camera.read(WAIT_S) for _ in range(6)]
    assert [frame.seq for frame in frames] == list(range(7))
    assert {frame.camera for frame in frames} == {"main"}
    times = [before_ns, *(frame.captured_ns for frame in frames), time.monotonic_ns()]
    assert times == sorted(times)
    for frame in frames:
        height, width, channels = frame.pixels.shape
        assert channels == 3
        assert frame.pixels.dtype == np.uint8
        assert width >= 224
        assert height >= 224
        assert frame.pixels[:, :, 0].min() > 200
        assert frame.pixels[:, :, 1:].max() < 60
        assert frame.pixels.flags.c_contiguous
        assert frame.pixels.flags.writeable
    assert np.array_equal(first, frames[0].pixels)
    assert not any(np.shares_memory(frames[0].pixels, later.pixels) for later in frames[1:])


def test_opens_again_and_closes_twice(make: MakeCamera) -> None:
    camera = make()
    for _ in range(2):
        with camera:
            assert camera.read(WAIT_S).seq == 0
        camera.__exit__(None, None, None)
        with pytest.raises(CameraEnded):
            camera.read(WAIT_S)


def test_leaves_no_thread(make: MakeCamera) -> None:
    before = set(threading.enumerate())
    with make() as camera:
        camera.read(WAIT_S)
    assert set(threading.enumerate()) <= before


def test_interrupt_ends_reading(make: MakeCamera) -> None:
    with make() as camera:
        camera.read(WAIT_S)
        camera.interrupt()
        with pytest.raises(CameraEnded):
            camera.read(WAIT_S)


@pytest.mark.parametrize("kind", ["images", "file"])
def test_a_paced_wait_is_interrupted(kind: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), red_picture())
    clip = write_clip(tmp_path / "red.mp4", 3)
    source = f"images:{tmp_path}" if kind == "images" else f"file:{clip}"
    with camera_for(source, fps=0.001) as camera:
        camera.read(WAIT_S)
        timer = threading.Timer(0.05, camera.interrupt)
        timer.start()
        with pytest.raises(CameraEnded):
            camera.read(1000)
        timer.join()


@pytest.mark.parametrize("codec", ["mp4v", "MJPG"])
def test_a_clip_gives_each_frame_once_then_ends_for_good(tmp_path: Path, codec: str) -> None:
    clip = write_clip(tmp_path / "red.avi", 7, codec=codec)
    with camera_for(f"file:{clip}", loop=False) as camera:
        assert [camera.read(WAIT_S).seq for _ in range(7)] == list(range(7))
        for _ in range(2):
            with pytest.raises(CameraEnded):
                camera.read(WAIT_S)


def test_a_clip_is_paced_by_its_timestamps_or_slower(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "red.mp4", 4, fps=25)
    for fps, interval_s in ((1000, 0.040), (10, 0.100)):
        with camera_for(f"file:{clip}", fps=fps, loop=False) as camera:
            times_ns = [camera.read(WAIT_S).captured_ns for _ in range(4)]
        assert (times_ns[-1] - times_ns[0]) / 1e9 >= 3 * interval_s - 0.002


def test_a_clip_cut_short_ends_early(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "red.avi", 20, codec="MJPG")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with camera_for(f"file:{clip}", loop=False) as camera:
        assert camera.read(WAIT_S).seq == 0
        with pytest.raises(CameraEnded):
            drain(camera)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 999, None])
def test_an_unreadable_clip_is_refused(tmp_path: Path, content: bytes | None) -> None:
    clip = tmp_path / "clip.mp4"
    if content is not None:
        clip.write_bytes(content)
    with pytest.raises(CameraError, match=r"clip\.mp4") as caught, camera_for(f"file:{clip}"):
        pass
    assert caught.value.hint


def test_opencv_and_ffmpeg_stay_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip = write_clip(tmp_path / "red.mp4", 20)
    damaged = bytearray(clip.read_bytes())
    damaged[len(damaged) // 3 : len(damaged) // 3 + 60] = b"\x5a" * 60
    clip.write_bytes(damaged)
    capfd.readouterr()
    with camera_for(f"file:{clip}", loop=False) as camera, pytest.raises(CameraEnded):
        drain(camera)
    assert capfd.readouterr() == ("", "")


def test_a_frozen_rtsp_server_is_a_stall(rtsp: RtspServer) -> None:
    from edge_app.camera.opencv import RtspCamera

    with RtspCamera("main", rtsp.source, fps=0, timeout_s=1.0) as camera:
        camera.read(WAIT_S)
        rtsp.process.send_signal(signal.SIGSTOP)
        with pytest.raises(CameraStalled, match="no frame") as caught:
            drain(camera)
    assert "geheim" not in str(caught.value)
    assert caught.value.hint


def test_a_killed_rtsp_server_is_an_error(rtsp: RtspServer) -> None:
    with camera_for(rtsp.source) as camera:
        camera.read(WAIT_S)
        rtsp.process.kill()
        with pytest.raises(CameraError, match="127") as caught:
            drain(camera)
    assert "geheim" not in str(caught.value)


def test_a_silent_rtsp_server_is_a_stall_and_no_hang(capfd: pytest.CaptureFixture[str]) -> None:
    from edge_app.camera.opencv import RtspCamera

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        camera = RtspCamera("main", f"rtsp://me:geheim@127.0.0.1:{port}/a", fps=0, timeout_s=0.5)
        with pytest.raises(CameraStalled) as caught, camera:
            pass
    assert "geheim" not in str(caught.value) + caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_a_wrong_rtsp_address_is_refused(
    shared_rtsp: RtspServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()[1]
    sources = (shared_rtsp.source + "/none", f"rtsp://me:geheim@127.0.0.1:{nobody}/a")
    for source in sources:
        with pytest.raises(CameraError) as caught, camera_for(source):
            pass
        assert "geheim" not in str(caught.value) + caught.value.hint
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("device", "found"),
    [("/dev/video987", "No such file"), ("/dev/null", "gives no pictures"), ("/tmp", "no device")],  # noqa: S108
)
def test_what_is_no_v4l2_camera_is_refused(device: str, found: str) -> None:
    with pytest.raises(CameraError, match=found) as caught, camera_for(f"v4l2:{device}"):
        pass
    assert device in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("granted", ["BGR888", "RGB888", "XBGR8888", "XRGB8888", "YUV420"])
def test_picamera_reads_what_was_granted(picamera2: ModuleType, granted: str) -> None:
    picamera2.world.granted_format = granted
    picamera2.world.stride_align = 512
    with camera_for("picamera:0") as camera:
        for _ in range(10):  # more than there are buffers: each must be given back
            pixels = camera.read(WAIT_S).pixels
            assert pixels.shape == (224, 300, 3)
            assert pixels[:, :, 0].min() > 240
            assert pixels[:, :, 1:].max() < 16


def test_picamera_refuses_a_format_it_cannot_read(picamera2: ModuleType) -> None:
    picamera2.world.granted_format = "YUYV"
    with pytest.raises(CameraError, match="YUYV"), camera_for("picamera:0"):
        pass
    assert picamera2.world.stops == 1  # and lets the camera go


def test_picamera_shows_all_the_sensor_sees(picamera2: ModuleType) -> None:
    with camera_for("picamera:0"):
        assert picamera2.world.sensor == {"output_size": (1640, 1232)}


def test_picamera_sets_listed_controls_only(picamera2: ModuleType) -> None:
    with camera_for("picamera:0", fps=50):
        assert picamera2.world.set_controls == {"FrameDurationLimits": (20_000, 20_000)}
    world = picamera2.reset()
    world.controls = {}
    with camera_for("picamera:0", fps=50) as camera:
        camera.read(WAIT_S)
        assert world.set_controls == {}


@pytest.mark.parametrize("clock", [time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC, None])
def test_picamera_tells_the_capture_time(picamera2: ModuleType, clock: int | None) -> None:
    picamera2.world.clock = clock
    with camera_for("picamera:0") as camera:
        before_ns = time.monotonic_ns()
        captured_ns = camera.read(WAIT_S).captured_ns
    # The two clocks cannot be read at the same instant.
    assert before_ns - 1_000_000 <= captured_ns <= time.monotonic_ns()


def test_a_stalled_picamera_is_left_alone(picamera2: ModuleType) -> None:
    with camera_for("picamera:0") as camera:
        camera.read(WAIT_S)
        picamera2.world.answers.clear()
        with pytest.raises(CameraStalled, match="no frame"):
            drain(camera, 0.05)
    assert picamera2.world.stops == 0  # it would wait for ever


def test_a_missing_or_busy_picamera_is_refused(picamera2: ModuleType) -> None:
    with (
        pytest.raises(CameraError, match=r"no camera 3; found: 0: imx708"),
        camera_for("picamera:3"),
    ):
        pass
    picamera2.world.busy = True
    with pytest.raises(CameraError, match="cannot be started"), camera_for("picamera:0"):
        pass


def test_a_missing_picamera2_says_how_to_get_it() -> None:
    if importlib.util.find_spec("picamera2"):
        pytest.skip("picamera2 is installed here")
    with pytest.raises(CameraError, match="picamera2") as caught, camera_for("picamera:0"):
        pass
    assert "apt install python3-picamera2" in caught.value.hint
    assert "--system-site-packages" in caught.value.hint


def test_each_backend_is_imported_only_when_asked_for(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), red_picture())
    program = (
        "import sys\n"
        "from edge_app.camera import mailbox, opening\n"
        "assert 'cv2' not in sys.modules\n"
        f"opening.open_camera('a', 'images:{tmp_path}', size_px=(1, 1), fps=0, loop=True,"
        " cover_px=(1, 1))\n"
        "assert 'edge_app.camera.opencv' not in sys.modules\n"
        "assert 'edge_app.camera.picamera' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
