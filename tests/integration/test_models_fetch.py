"""Fetching from a real server that behaves, and from one that does not."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from edge_app import catalog
from edge_app.catalog import ModelFile, Passport
from edge_app.cli import main
from edge_app.errors import EXIT_OK, EXIT_UNAVAILABLE, ModelError, UsageError
from edge_app.tools import models
from edge_app.tools.download import DownloadError, download
from edge_app.tools.fetch import fetch
from edge_app.tools.passports import to_toml
from tests.colour_model import write_labels, write_model

DATA = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Server:
    """What to serve, how to misbehave, and what was asked."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    break_after_bytes: int | None = None
    stall: threading.Event | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is the library's
            _answer(self, state)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}/")
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield state
        if state.stall:
            state.stall.set()
        http.shutdown()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, state: Server) -> None:
    wanted = request.headers.get("Range", "")
    state.asked.append((request.path, wanted))
    data = state.files.get(request.path[1:])
    if data is None:
        request.send_error(404)
        return
    start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
    request.send_response(206 if start else 200)
    request.send_header("Content-Length", str(len(data) - start))
    request.end_headers()
    end = len(data) if state.break_after_bytes is None else start + state.break_after_bytes
    request.wfile.write(data[start:end])
    request.wfile.flush()
    if state.stall:
        state.stall.wait(10)
        with contextlib.suppress(OSError):  # the client may have given up
            request.wfile.write(data[end:])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.setenv("EDGE_APP_MODELS_DIR", str(folder))
    return folder


@pytest.fixture
def get(server: Server, home: Path) -> Callable[..., Path]:
    """Fetch DATA as "file" with its hash, and return where it went."""
    server.files["file"] = DATA

    def get(**changes: object) -> Path:
        options: dict[str, object] = {"sha256": SHA256, "size_bytes": len(DATA), "timeout_s": 5.0}
        download(server.url + "file", home / "file", **(options | changes))  # type: ignore[arg-type]
        return home / "file"

    return get


def nothing_installed(home: Path) -> bool:
    return not (home / "file").exists()


def test_a_file_arrives_whole(get: Callable[..., Path], home: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = get(progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert [entry.name for entry in home.iterdir()] == ["file"]


def test_a_broken_download_is_continued(
    get: Callable[..., Path], server: Server, home: Path
) -> None:
    server.break_after_bytes = 100_000
    with pytest.raises(DownloadError, match=r"ended after 100000 of 256000 bytes|connection broke"):
        get()
    assert nothing_installed(home)
    server.break_after_bytes = None
    assert get().read_bytes() == DATA
    assert server.asked == [("/file", ""), ("/file", "bytes=100000-")]


def test_a_server_without_ranges_starts_again(get: Callable[..., Path], server: Server) -> None:
    server.break_after_bytes, server.ranges = 100_000, False
    with pytest.raises(DownloadError):
        get()
    server.break_after_bytes = None
    assert get().read_bytes() == DATA


def test_without_a_hash_nothing_is_continued(get: Callable[..., Path], server: Server) -> None:
    server.break_after_bytes = 100_000
    with pytest.raises(DownloadError):
        get(sha256="", size_bytes=0)
    server.break_after_bytes = None
    assert get(sha256="", size_bytes=0).read_bytes() == DATA
    assert server.asked == [("/file", ""), ("/file", "")]


def test_a_complete_leftover_needs_no_server(
    get: Callable[..., Path], server: Server, home: Path
) -> None:
    (home / ".file.part").write_bytes(DATA)
    assert get().read_bytes() == DATA
    assert not server.asked


def test_a_spoilt_leftover_is_thrown_away(get: Callable[..., Path], home: Path) -> None:
    (home / ".file.part").write_bytes(b"\0" * 1000)
    with pytest.raises(DownloadError, match="is not the file the catalogue knows"):
        get()
    assert nothing_installed(home)
    assert get().read_bytes() == DATA


@pytest.mark.parametrize("length", [len(DATA) - 1, len(DATA)])
def test_another_file_is_refused(
    get: Callable[..., Path], server: Server, home: Path, length: int
) -> None:
    server.files["file"] = DATA[::-1][:length]
    with pytest.raises(DownloadError):
        get()
    assert nothing_installed(home)


def test_a_file_that_is_too_long_is_cut_off(
    get: Callable[..., Path], server: Server, home: Path
) -> None:
    server.files["file"] = DATA * 10
    with pytest.raises(DownloadError, match="larger than the 256000 bytes"):
        get()
    assert not list(home.glob("file"))


def test_a_stalled_server_is_given_up(get: Callable[..., Path], server: Server, home: Path) -> None:
    server.break_after_bytes, server.stall = 1000, threading.Event()
    with pytest.raises(DownloadError, match=r"nothing came for 0\.2 s"):
        get(timeout_s=0.2)
    assert nothing_installed(home)


def test_a_missing_file_is_told(get: Callable[..., Path], server: Server) -> None:
    server.files.clear()
    with pytest.raises(DownloadError, match="the server answers 404 Not Found"):
        get()


def test_no_server_is_told(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(DownloadError, match=r"cannot be reached: .*refused") as caught:
        download(f"http://127.0.0.1:{port}/file", home / "file")
    assert "network" in caught.value.hint


def test_a_second_download_at_once_is_refused(
    get: Callable[..., Path], server: Server, home: Path
) -> None:
    server.break_after_bytes, server.stall = 1000, threading.Event()
    first = threading.Thread(target=get, kwargs={"timeout_s": 60.0})
    first.start()
    while not server.asked:
        first.join(0.01)
    with pytest.raises(DownloadError, match="another process"):
        get()
    server.stall.set()
    first.join()
    assert (home / "file").read_bytes() == DATA


def test_a_place_that_cannot_be_written_is_told(server: Server, home: Path) -> None:
    server.files["file"] = DATA
    (home / "blocked").write_text("a file, not a folder")
    with pytest.raises(DownloadError, match="cannot be written") as caught:
        download(server.url + "file", home / "blocked" / "file")
    assert "EDGE_APP_MODELS_DIR" in caught.value.hint


@pytest.fixture
def published(server: Server, home: Path, tmp_path: Path) -> Passport:
    """A passport in the manner of the catalogue's published models, served by `server`."""
    cpu = write_model(tmp_path / "tiny.tflite").read_bytes()
    labels = write_labels(tmp_path / "labels.txt").read_bytes()
    twin = cpu + b"edgetpu-custom-op"
    server.files |= {"tiny.tflite": cpu, "labels.txt": labels, "tiny_edgetpu.tflite": twin}
    passport = Passport(
        task="classify",
        input_px=(8, 8),
        dtype="int8",
        outputs=(3,),
        cpu=_entry("tiny.tflite", cpu),
        labels=_entry("labels.txt", labels),
        edgetpu=_entry("tiny_edgetpu.tflite", twin),
        base_url=server.url,
    )
    (home / "tiny.toml").write_text(to_toml(passport))
    return passport


def _entry(name: str, data: bytes) -> ModelFile:
    return ModelFile(file=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _forget_twin(passport: Passport, home: Path) -> None:
    """Make the twin's hash unknown, as for a file nobody could verify."""
    unknown = msgspec.structs.replace(passport, edgetpu=ModelFile(file="tiny_edgetpu.tflite"))
    (home / "tiny.toml").write_text(to_toml(unknown))


def test_a_model_is_fetched_once(published: Passport, server: Server) -> None:
    assert fetch("tiny") == EXIT_OK
    files = catalog.resolve("tiny")
    assert files.edgetpu is not None
    assert len(server.asked) == 3
    assert fetch("tiny") == EXIT_OK
    assert len(server.asked) == 3
    assert files.cpu is not None
    files.cpu.write_bytes(b"damaged")  # the next fetch repairs it, and only it
    assert fetch("tiny") == EXIT_OK
    assert [path for path, _ in server.asked[3:]] == ["/tiny.tflite"]


def test_a_folder_can_stand_for_the_network(
    published: Passport, server: Server, tmp_path: Path
) -> None:
    mirror = tmp_path / "usb stick"
    mirror.mkdir()
    for name, data in server.files.items():
        (mirror / name).write_bytes(data)
    assert fetch("tiny", source=str(mirror)) == EXIT_OK
    assert not server.asked
    with pytest.raises(UsageError, match="a folder or an http"):
        fetch("tiny", source="ftp://example.org/")
    (mirror / "tiny.tflite").unlink()
    (catalog.installed_dir() / "tiny.tflite").unlink()
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch("tiny", source=str(mirror))


def test_no_network_is_one_line_and_a_hint(
    published: Passport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    source = f"http://127.0.0.1:{port}"
    assert main(["models", "fetch", "tiny", "--from", source]) == EXIT_UNAVAILABLE
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith(("edge-app:", "hint:"))]
    assert len(lines) == 2
    assert f"{source}/labels.txt: cannot be reached" in lines[0]
    assert "Traceback" not in told.err
    assert not list(catalog.installed_dir().glob(".*"))  # not even an empty leftover


def test_an_unknown_hash_needs_consent_once(
    published: Passport, server: Server, home: Path
) -> None:
    _forget_twin(published, home)
    with pytest.raises(ModelError, match=r"no hash for tiny_edgetpu\.tflite") as caught:
        fetch("tiny")
    assert "--trust-on-first-use" in caught.value.hint
    assert not server.asked
    assert fetch("tiny", trust_on_first_use=True) == EXIT_OK
    twin = home / "tiny_edgetpu.tflite"
    twin.unlink()
    assert fetch("tiny") == EXIT_OK  # its hash is known now
    server.files["tiny_edgetpu.tflite"] += b"!"
    twin.unlink()
    with pytest.raises(DownloadError, match="is not the file"):
        fetch("tiny", trust_on_first_use=True)
    assert not twin.exists()


def test_trust_stops_at_files_that_are_no_models(
    published: Passport, server: Server, home: Path
) -> None:
    _forget_twin(published, home)
    server.files["tiny_edgetpu.tflite"] = b"<html>not found</html>"
    with pytest.raises(ModelError, match="not a TensorFlow Lite model"):
        fetch("tiny", trust_on_first_use=True)
    assert {path.name for path in home.iterdir()} == {"labels.txt", "tiny.tflite", "tiny.toml"}


def test_a_file_put_there_by_hand_is_not_trusted(
    published: Passport, server: Server, home: Path
) -> None:
    _forget_twin(published, home)
    assert fetch("tiny", trust_on_first_use=True) == EXIT_OK
    (home / "tiny_edgetpu.tflite.sha256").unlink()
    assert models.verify("tiny") != EXIT_OK


def test_the_shipped_model_needs_no_fetching(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch("mobilenet_v2_1.0_224") == EXIT_OK
    assert "nothing to fetch" in capsys.readouterr().out
