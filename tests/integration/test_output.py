"""The appliance without a broker, writing to what nobody reads, or what takes nothing."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_app import cli, subcommands
from edge_app.errors import EXIT_USAGE
from tests.integration.test_appliance import PATIENCE_S, appliance, finish, write_config

SIGTERM_BOUND_S = 6  # the contract's, not a speed


def test_sigterm_ends_it_though_nobody_reads(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=None, camera="fps = 0")
    with appliance(config) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        # Its own processor time tells that it goes on inferring with the pipe full.
        wait_for_cpu_s(process, 4.0)
        process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        process.wait(PATIENCE_S)
        assert time.monotonic() - asked_s < SIGTERM_BOUND_S
        assert process.returncode >= 0  # no crash: what unread results are worth, run() decides


def wait_for_cpu_s(process: subprocess.Popen[str], seconds: float) -> None:
    while process.poll() is None:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        if (int(fields[11]) + int(fields[12])) / 100 >= seconds:
            return
        time.sleep(0.05)  # nothing to wait on: the kernel's count moves by itself
    raise AssertionError(f"it ended with {process.returncode}")


def test_a_reader_that_takes_one_line_leaves_no_traceback(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=None, camera="loop = false")
    with appliance(config) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith('{"topic":')
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        process.wait(PATIENCE_S)
    assert err.count("cannot write results") == 1
    assert "Traceback" not in err


def test_a_closed_output_is_said_at_the_start(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=None, camera="loop = false")
    command = [sys.executable, "-m", "edge_app", "run", "--config", str(config)]
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command],
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == EXIT_USAGE
    assert "standard output is closed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_live_source_ends_when_its_reader_has_left(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=None, camera="fps = 0")
    with appliance(config) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        process.wait(PATIENCE_S)
    assert process.returncode == 0, err
    assert "Traceback" not in err


@contextmanager
def hanging_up(handler: signal.Handlers) -> Iterator[None]:
    """What we begin inherits what SIGHUP does: as from a terminal, or as from nohup."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_closes_ends_it_in_order(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=None, camera="fps = 5")
    with hanging_up(signal.SIG_DFL), appliance(config) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        code, _, err = finish(process)
    assert code == 0
    assert "stopped by SIGHUP" in err


def test_with_nohup_it_outlives_its_terminal(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=None, camera="fps = 5")
    with hanging_up(signal.SIG_IGN), appliance(config) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        for _ in range(5):
            assert process.stdout.readline()
        process.terminate()
        code, _, err = finish(process)
    assert code == 0
    assert "stopped by SIGTERM" in err


def test_a_full_disk_ends_a_recording_with_a_word(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=None, camera="loop = false")
    command = [sys.executable, "-m", "edge_app", "run", "--config", str(config)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False
        )
    assert done.stderr.count("cannot write results") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [("-v", "models", "list"), ("models", "-v", "list"), ("models", "list", "-v")]
)
def test_v_may_stand_anywhere(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def listing(args: argparse.Namespace) -> int:
        seen.append(args.verbose)
        return 0

    monkeypatch.setattr(subcommands, "models_list", listing)
    assert cli.main(words) == 0
    assert seen == [True]


@pytest.mark.parametrize("words", [(), ("models",), ("config",)])
def test_a_missing_command_is_answered_with_those_there_are(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == EXIT_USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert "show this help" in said.err
