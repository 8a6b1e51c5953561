"""What `edge-app bench` makes of its numbers."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edge_app.tools import bench_rig, bench_spool
from edge_app.tools.bench_figures import Bound, judged
from edge_app.tools.bench_latency import frame_added_ms
from edge_app.tools.bench_probing import split
from edge_app.tools.bench_turns import busiest_s, share


def test_each_turn_is_compared_with_the_bare_turns_around_it() -> None:
    # 90 / 100, 180 / 200 and 30 / 300: the machine's speed changes, and one turn was disturbed.
    bare_hz = [50.0, 150.0, 250.0, 350.0]
    assert share([90.0, 180.0, 30.0], bare_hz) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("value", "target", "verdict"),
    [
        (0.9, (">=", 0.9), "met"),
        (0.899, (">=", 0.9), "missed"),
        (1.0, (">=", 0.9), "met"),
        (1.06, (">=", 0.9), "not valid"),
        (0.5, ("<=", 0.5), "met"),
        (0.501, ("<=", 0.5), "missed"),
    ],
)
def test_a_verdict(value: float, target: Bound, verdict: str) -> None:
    figure = judged("name", value, "", "meaning", target, possible=1.0)
    assert (figure.value, figure.verdict) == (value, verdict)
    assert figure.target == f"{target[0]} {target[1]:g}"


def test_the_verdict_is_on_the_value_that_is_shown() -> None:
    figure = judged("name", 0.8999, "", "meaning", (">=", 0.9))
    assert (figure.value, figure.verdict) == (0.9, "met")


def test_the_busiest_thread_between_two_readings() -> None:
    # The main thread has used most so far; thread 3 is new.
    assert busiest_s({1: 9.0, 2: 1.0}, {1: 9.1, 2: 1.6, 3: 0.5}) == pytest.approx(0.6)


def test_a_frame_s_own_delay_counts_up_to_the_hand_over() -> None:
    payloads = [
        json.dumps({"frame": number, "timing_ms": {"invoke": invoke_ms}}).encode()
        for number, invoke_ms in ((7, 4.0), (8, 5.0))
    ]
    handed_over = list(zip(payloads, (5_500_000, 66_000_000), strict=True))
    # The second one's result took long to encode, after everything its message can tell.
    assert frame_added_ms({7: 1_000_000, 8: 11_000_000}, handed_over) == [0.5, 50.0]


def test_processor_time_of_a_thread_whatever_its_name() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    line = f"12 (a) b (c) R 1 1 1 0 -1 4194560 1 0 0 0 {3 * ticks} {2 * ticks} 0 0 20 0 1 0 99"
    assert bench_rig.cpu_s(line) == 5.0
    assert os.getpid() in bench_rig.thread_cpu_s(os.getpid())


def test_a_paused_process_is_stopped_and_goes_on() -> None:
    def state() -> str:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with bench_rig.paused(process):
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            assert state() == "T"
        out, _ = process.communicate(b"still here")
    assert (out, process.returncode) == (b"still here", 0)


def test_the_idle_share_is_a_share() -> None:
    assert 0 <= bench_rig.idle_share(0.05) <= 1


def test_a_frame_belongs_to_a_probe_that_it_met() -> None:
    ms = 1_000_000
    ready_ns = {0: 0, 1: 10 * ms, 2: 20 * ms, 3: 30 * ms, 4: 40 * ms}
    handed = [(b'{"frame":%d}' % seq, ready + 3 * ms) for seq, ready in ready_ns.items()]
    # Born while frame 1 is under way, gone before frame 3; another is frame 4's alone.
    lives = [(12 * ms, 29 * ms), (39 * ms, 50 * ms)]
    quiet, probed = split(ready_ns, handed, lives, began_ns=5 * ms)
    assert (len(quiet), len(probed)) == (1, 3)  # frame 0 is of the warming up
    assert set(quiet + probed) == {3.0}


def test_what_is_written_for_a_thousand_messages_and_in_an_hour() -> None:
    found = bench_spool.Measured(
        count=200_000,
        message_bytes=438,
        spooled_hz=50_000.4,
        offline_bytes=200e6,
        growth_mb=7.0,
        replayed_hz=4_800.0,
        replay_share=1.04,
        online_count=20_000,
        online_bytes=16_000,
    )
    values = {figure.name: figure.value for figure in bench_spool.rows(found)}
    assert values["disk, offline"] == 1000  # kB
    assert values["disk, online"] == 0.8
    assert values["disk, online, an hour"] == 86  # 108 times as many messages
    assert values["memory, 200000 queued"] == 7
    in_memory = bench_spool.rows(replace(found, offline_bytes=0))
    assert not any("disk" in figure.name for figure in in_memory)
