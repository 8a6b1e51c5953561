from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edge_app.errors import EXIT_CONFIG, EXIT_UNAVAILABLE
from edge_app.publish.claim import Claim, ForeignError, TakenError, fault_of
from tests.spools import record, spool_at, wait_until_saved

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_second_one_hears_who_was_first(path: Path) -> None:
    with closing(Claim(path)) as first, closing(Claim(path)) as second:
        assert first.take()
        assert first.take(), "it has it already"
        with pytest.raises(TakenError, match=rf"another edge-app \(pid {os.getpid()}\)") as told:
            second.take()
        assert told.value.exit_code == EXIT_UNAVAILABLE
        assert (first.held, second.held) == (True, False)
        first.close()
        assert second.take()


def test_a_number_that_nobody_has_is_not_told(path: Path) -> None:
    with closing(Claim(path)) as first, closing(Claim(path)) as second:
        first.take()
        path.with_name("spool.db.lock").write_text("99999999\n")
        with pytest.raises(TakenError, match="another edge-app uses"):
            second.take()


def test_it_ends_with_the_process_whatever_its_children_do(path: Path) -> None:
    program = (
        "import pathlib, subprocess, sys; from edge_app.publish.claim import Claim; "
        "Claim.keep = claim = Claim(pathlib.Path(sys.argv[1])); claim.take(); "
        "child = subprocess.Popen(['sleep', '600'], close_fds=False); "
        "print(child.pid, flush=True); child.wait()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with closing(Claim(path)) as claim:
                with pytest.raises(TakenError, match=f"pid {holder.pid}"):
                    claim.take()
                holder.kill()
                holder.wait()
                assert claim.take()
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("place", ["missing/missing/spool.db", "a-file/spool.db"])
def test_where_no_folder_can_be_nothing_is_claimed_or_made(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").write_text("")
    claim = Claim(tmp_path / place)
    assert not claim.take()
    assert [each.name for each in tmp_path.iterdir()] == ["a-file"]


def test_one_folder_is_made(tmp_path: Path) -> None:
    with closing(Claim(tmp_path / "missing" / "spool.db")) as claim:
        assert claim.take()


@needs_root
def test_a_lock_file_of_another_user_serves(path: Path) -> None:
    path.parent.chmod(0o777)
    before = os.umask(0o077)
    try:
        with closing(Claim(path)) as claim:
            claim.take()
    finally:
        os.umask(before)
    for folder in (path.parent, *path.parent.parents[:2]):
        folder.chmod(0o777)  # pytest keeps others out
    with another_user(), closing(Claim(path)) as claim:
        assert claim.take()
        with pytest.raises(TakenError), closing(Claim(path)) as second:
            second.take()


def make_file(path: Path) -> None:
    path.write_text("root:x:0:0:root:/root:/bin/bash\n" * 10)


def make_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE message(seq, body)")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Path.mkdir, "a directory"),
        (os.mkfifo, "a device or a pipe"),
        (make_file, "a file of something else"),
        (make_database, "a file of something else"),
    ],
)
def test_what_is_something_else_is_not_touched(
    path: Path, make: Callable[[Path], None], what: str
) -> None:
    make(path)
    before = path.stat()
    with pytest.raises(ForeignError, match=what) as told:
        Claim(path).take()
    assert told.value.exit_code == EXIT_CONFIG
    assert path.stat() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_is_none_even_where_a_spool_was(path: Path) -> None:
    with closing(Claim(path)) as claim:
        claim.take()
    path.mkdir()
    assert "a directory" in fault_of(path)


def test_a_spool_is_ours_also_when_it_is_damaged(path: Path) -> None:
    assert fault_of(path) == ""
    path.touch()
    assert fault_of(path) == ""
    with spool_at(path) as spool:
        spool.append(record(1))
        wait_until_saved(spool)
    data = path.read_bytes()
    path.write_bytes(data[:100] + os.urandom(len(data) - 100))
    assert fault_of(path) == ""
    with closing(Claim(path)) as claim:
        claim.take()
    path.write_bytes(os.urandom(len(data)))  # known by the lock file
    assert fault_of(path) == ""
    path.with_name("spool.db.lock").unlink()
    assert "something else" in fault_of(path)
