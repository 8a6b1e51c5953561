from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_app.publish.claim import Claim, TakenError
from edge_app.publish.keeper import BLOCK
from edge_app.publish.spool_file import SpoolFile
from tests.spools import (
    drained,
    events,
    numbers,
    record,
    spool_at,
    take,
    unexplained,
    wait_until,
    wait_until_saved,
)

needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def crash(path: Path, to: Path) -> Path:
    """Return a copy of the file as a power cut would leave it at this moment."""
    to.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, to)
    return to / path.name


def test_what_was_not_acknowledged_comes_after_a_restart(path: Path) -> None:
    with spool_at(path) as spool:
        for number in range(10):
            spool.append(record(number))
        assert numbers(drained(spool, limit=4)) == [0, 1, 2, 3]
    with spool_at(path) as spool:
        spool.append(record(10))
        payloads = drained(spool)
    assert numbers(payloads) == list(range(4, 11))
    assert [payload["seq"] for payload in payloads] == list(range(5, 12))
    with spool_at(path) as spool:
        assert spool.append(record(11)) == 12
        assert spool.state().queued == 1


def test_nothing_is_written_while_messages_are_acknowledged(path: Path) -> None:
    with spool_at(path) as spool:
        wait_until((path.parent / "spool.db-wal").exists)
        before = sizes_and_times(path)
        for number in range(100):
            spool.append(record(number))
            assert numbers(drained(spool)) == [number]
        assert sizes_and_times(path) == before
        spool.append(record(100))
        wait_until_saved(spool)
        assert sizes_and_times(path) != before


def sizes_and_times(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(path.parent.glob(f"{path.name}*"))
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def test_a_crash_loses_what_was_in_memory_and_says_so(path: Path, tmp_path: Path) -> None:
    with spool_at(path) as spool:
        heard = drained(spool)
        for number in range(5):
            spool.append(record(number))
        heard += drained(spool, limit=2)
        wait_until_saved(spool)
        wait_until(lambda: not spool.acked_rows())
        after_crash = crash(path, tmp_path / "after")
        spool.append(record(5))
    with spool_at(after_crash) as spool:
        spool.append(record(6))
        heard += drained(spool)
    assert numbers(heard) == [0, 1, 2, 3, 4, 6]
    (gap,) = events(heard, "spool_gap")
    assert gap["details"] == {"first": 6, "last": BLOCK}
    assert gap["seq"] == BLOCK + 1
    assert unexplained(heard) == []


def test_a_second_crash_explains_the_first_as_well(path: Path, tmp_path: Path) -> None:
    heard = []
    with spool_at(path) as spool:
        spool.append(record(0))
        heard += drained(spool)
        first = crash(path, tmp_path / "first")
    with spool_at(first, tick_s=60):  # the event about the first is lost with it
        second = crash(first, tmp_path / "second")
    with spool_at(second) as spool:
        spool.append(record(1))
        heard += drained(spool)
    assert numbers(heard) == [0, 1]
    assert unexplained(heard) == []


def test_numbers_are_reserved_ahead_of_their_use(path: Path, tmp_path: Path) -> None:
    with spool_at(path) as spool:
        for number in range(3 * BLOCK):
            spool.append(record(number))
            taken = spool.take()
            if taken:
                spool.ack(taken[0])
            if number % 1000 == 0:
                wait_until_saved(spool)
        last = spool.append(record(0))
        wait_until_saved(spool)
        after_crash = crash(path, tmp_path / "after")
    with spool_at(after_crash) as spool:
        assert spool.append(record(1)) > last


def test_rewound_messages_come_again_from_the_disk(path: Path) -> None:
    with spool_at(path) as spool:
        for number in range(2000):
            spool.append(record(number))
        first = [take(spool, n) for n in range(32)]
        wait_until_saved(spool)
        assert take(spool, 32) is not None
        spool.rewind()
        again = [take(spool, n) for n in range(32)]
        assert [t[0] for t in again if t] == [t[0] for t in first if t] == list(range(1, 33))
        spool.rewind()
        assert numbers(drained(spool)) == list(range(2000))


def test_what_is_in_flight_is_not_sent_twice_because_it_was_saved(path: Path) -> None:
    with spool_at(path) as spool:
        for number in range(10):
            spool.append(record(number))
        sent = [spool.take() for _ in range(6)]
        wait_until_saved(spool)
        following = [take(spool, 6 + n) for n in range(4)]
        assert [t[0] for t in sent + following if t] == list(range(1, 11))
        for seq in range(1, 11):
            spool.ack(seq)
        assert spool.state().queued == 0
        wait_until(lambda: spool.state().bytes == 0)
    with spool_at(path) as spool:
        assert drained(spool) == []


def test_full_means_the_oldest_go_counted_with_one_event(path: Path) -> None:
    with spool_at(path, max_bytes=100_000) as spool:
        for number in range(1000):
            spool.append(record(number, 200))
            if number % 50 == 0:
                wait_until_saved(spool)
        wait_until_saved(spool)
        state = spool.state()
        assert state.bytes <= 100_000
        payloads = drained(spool)
    assert len(events(payloads)) == len(events(payloads, "spool_overflow")) == 1
    kept = numbers(payloads)
    assert kept == list(range(kept[0], 1000))
    assert state.dropped == payloads[0]["seq"] - 1  # the event, as often as it was dropped, too
    assert len(kept) > 250
    assert path.stat().st_size < 200_000


def test_the_next_overflow_is_another_event(path: Path) -> None:
    heard = []
    with spool_at(path, max_bytes=20_000) as spool:
        for _ in range(2):
            for number in range(200):
                spool.append(record(number, 200))
            wait_until_saved(spool)
            heard += drained(spool)
            wait_until(lambda: spool.state().bytes == 0)
    assert len(events(heard, "spool_overflow")) == 2


@pytest.mark.parametrize(
    "content", [b"no database at all\n" * 400, b"SQLite format 3\0" + b"\1" * 5000]
)
def test_a_file_that_is_no_spool_is_set_aside(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with spool_at(path) as spool:
        spool.append(record(0))
        payloads = drained(spool)
    assert [event["event"] for event in events(payloads)] == ["spool_set_aside", "spool_gap"]
    assert path.with_name("spool.db.aside").read_bytes() == content
    with spool_at(path) as spool:
        assert spool.append(record(1)) == payloads[-1]["seq"] + 1


def test_a_database_of_another_program_is_set_aside_unharmed(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.executescript("CREATE TABLE message(seq, body); INSERT INTO message VALUES (1, 'hi')")
    with spool_at(path) as spool:
        payloads = drained(spool)
    assert "another program" in events(payloads, "spool_set_aside")[0]["message"]
    with closing(sqlite3.connect(path.with_name("spool.db.aside"))) as other:
        assert other.execute("SELECT * FROM message").fetchall() == [(1, "hi")]


def test_numbers_are_not_used_again_when_the_file_is_broken(path: Path) -> None:
    with spool_at(path) as spool:
        for number in range(500):
            spool.append(record(number, 500))
        wait_until_saved(spool)
        used = spool.next_seq() - 1
    data = bytearray(path.read_bytes())
    data[20_000:120_000] = os.urandom(100_000)
    path.write_bytes(data)
    with spool_at(path) as spool:
        assert spool.append(record(0)) > used
        assert events(drained(spool))[0]["event"] == "spool_set_aside"


def test_damage_found_while_running_is_set_aside(path: Path) -> None:
    with spool_at(path) as spool:
        for number in range(5000):
            spool.append(record(number, 500))
        wait_until_saved(spool)
        spool.rewind()
        with path.open("r+b") as file:  # the log's pages are newer: break both
            size = path.stat().st_size
            file.write(os.urandom(size))
        log = path.with_name("spool.db-wal")
        log.write_bytes(os.urandom(log.stat().st_size))
        payloads = drained(spool)
        while not events(payloads):
            payloads += drained(spool)
        spool.append(record(5000))
        payloads += drained(spool)
        (aside,) = events(payloads, "spool_set_aside")
        assert aside["details"]["lost"] > 4000
        assert numbers(payloads)[-1] == 5000
        spool.append(record(5001))
        wait_until_saved(spool)
    with spool_at(path) as spool:
        assert numbers(drained(spool)) == [5001]


@needs_mount
def test_forbidden_is_not_called_a_failing_disk() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "spool.db"
        with spool_at(path) as spool:
            spool.append(record(0))
        os.seteuid(65534)
        try:
            with spool_at(path) as spool:
                (event,) = events(drained(spool))
        finally:
            os.seteuid(0)
    assert event["event"] == "spool_degraded"
    assert f"user 65534 may not write to {folder}; messages wait in memory" in event["message"]


def test_a_path_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "not" / "mounted" / "spool.db"
    with spool_at(path, claim=Claim(path)) as spool:
        (event,) = events(drained(spool))
    assert f"there is no folder {tmp_path}/not (a disk that is not mounted?)" in event["message"]
    assert list(tmp_path.iterdir()) == []


def test_what_another_appliance_has_claimed_is_no_spool_of_ours(path: Path) -> None:
    with closing(Claim(path)) as first:
        first.take()
        with pytest.raises(TakenError), spool_at(path, claim=Claim(path)):
            pass
    assert not path.exists()


class CountedClaim(Claim):
    tries = 0

    def take(self) -> bool:
        self.tries += 1
        return super().take()


def test_a_disk_that_comes_late_is_not_taken_from_who_was_first(tmp_path: Path) -> None:
    path = tmp_path / "late" / "disk" / "spool.db"
    ours, first = CountedClaim(path), Claim(tmp_path / "made" / "disk" / "spool.db")
    with closing(ours), spool_at(path, claim=ours) as spool:
        (tmp_path / "made" / "disk").mkdir(parents=True)
        assert first.take()
        (tmp_path / "made").rename(tmp_path / "late")
        tries = ours.tries
        wait_until(lambda: ours.tries > tries + 2)
        assert not path.exists()
        first.close()
        payloads = drained(spool)
        while not events(payloads, "spool_recovered"):
            payloads += drained(spool)
        with pytest.raises(TakenError):
            Claim(path).take()


def test_without_access_it_goes_on_in_memory() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            with spool_at(folder / "spool.db") as spool:
                now_ms = time.time_ns() // 1_000_000
                assert now_ms - 60_000 < spool.append(record(0)) <= now_ms + 1
                payloads = drained(spool)
        finally:
            os.seteuid(user)
        assert [event["event"] for event in events(payloads)] == ["spool_degraded"]
        assert numbers(payloads) == [0]
        folder.chmod(0o755)


def test_a_second_process_leaves_the_file_alone(path: Path) -> None:
    with spool_at(path) as first, spool_at(path) as second:
        first.append(record(1))
        second.append(record(2))
        payloads = drained(second)
        assert "locked by another program" in events(payloads, "spool_degraded")[0]["message"]
        assert numbers(payloads) == [2]
        assert numbers(drained(first)) == [1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@needs_mount
def test_a_full_disk_is_survived_in_memory_and_used_again(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with spool_at(small_disk / "spool.db") as spool:
        filler.write_bytes(b"x" * 3_800_000)
        for number in range(3000):
            spool.append(record(number, 200))
        wait_until(lambda: spool.state().queued == 3001)  # with the event
        assert spool.newest_rows(1)
        filler.unlink()
        wait_until_saved(spool)
        payloads = drained(spool)
        while not events(payloads, "spool_recovered"):
            payloads += drained(spool)
    assert numbers(payloads) == list(range(3000))
    assert [event["event"] for event in events(payloads)] == ["spool_degraded", "spool_recovered"]
    assert unexplained(payloads) == []


@needs_mount
def test_a_disk_that_stays_full_bounds_memory(small_disk: Path) -> None:
    with spool_at(small_disk / "spool.db", memory_bytes=500_000) as spool:
        (small_disk / "filler").write_bytes(b"x" * 3_800_000)
        for number in range(5000):
            spool.append(record(number, 200))
        wait_until(lambda: spool.state().dropped > 0)
        in_memory = spool.newest_rows(100_000)
        assert sum(len(message.payload) + 400 for _, message in in_memory) <= 500_000
        assert spool.state().queued + spool.state().dropped >= 5000
        payloads = drained(spool)
    assert numbers(payloads)[-1] == 4999
    assert [event["event"] for event in events(payloads)].count("spool_overflow") == 1


@needs_mount
def test_a_read_only_disk_is_used_once_it_takes_writes(small_disk: Path) -> None:
    path = small_disk / "spool.db"
    with spool_at(path) as spool:
        spool.append(record(0))
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    with spool_at(path) as spool:
        spool.append(record(1))
        payloads = drained(spool)
        assert numbers(payloads) == [1]
        assert events(payloads)[0]["event"] == "spool_degraded"
        assert "its file system is read-only" in events(payloads)[0]["message"]
        remount[2] = "remount,rw"
        subprocess.run(remount, check=True)
        later: list[dict[str, Any]] = []
        while not events(later, "spool_recovered"):
            later += drained(spool)
    assert numbers(later) == [0]  # late, but not lost
    assert sorted(e["event"] for e in events(later)) == ["spool_gap", "spool_recovered"]


def test_the_file_says_whose_it_is(path: Path) -> None:
    with spool_at(path):
        pass
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (0x65646765,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_every_batch_is_on_the_disk_when_the_call_returns(path: Path) -> None:
    file = SpoolFile(path)
    file.number(1, 100)
    file.add([(1, record(1))], 0)
    trace = path.with_name("trace")
    tracer = (
        subprocess.Popen(
            ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", trace, "-p", str(os.getpid())],
            stderr=subprocess.PIPE,
        )
        if shutil.which("strace")
        else None
    )
    if tracer is None:
        file.close()
        pytest.skip("strace is not installed")
    assert tracer.stderr is not None
    try:
        tracer.stderr.readline()  # "attached"
        file.add([(2, record(2))], 0)
    finally:
        tracer.terminate()
        tracer.communicate()
        file.close()
    assert "sync(" in trace.read_text()


def test_memory_does_not_grow_with_what_waits(path: Path) -> None:
    def resident_mb() -> float:
        return (
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
        )

    with spool_at(path, max_bytes=1_000_000_000) as spool:
        before_mb = resident_mb()
        for number in range(200_000):  # 120 MB if they stayed in memory
            spool.append(record(number, 200))
            if number % 5000 == 0:
                wait_until(lambda: not spool.is_pressing())
        wait_until_saved(spool)
        assert spool.state().queued == 200_000
        assert resident_mb() - before_mb < 60
