"""When an accelerator may serve: the rules, apart from clocks, threads and engines.

    opening --opened--> canary --N clean--> promoted --settled--> healthy
       ^                   |                    |                    |
       |                   +------- failed -----+------- failed -----+
       +----- time is up ----- backing_off <----+

Frames go to the accelerator while it is `promoted` (on probation) or `healthy`. Each failure before
it is healthy again makes the next pause longer; too many falls from service within a while, and it
is held down for longer still.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace


class State(enum.StrEnum):
    """Where an accelerator is on its way to serving frames."""

    OPENING = "opening"
    CANARY = "canary"
    PROMOTED = "promoted"
    HEALTHY = "healthy"
    BACKING_OFF = "backing_off"


class Happening(enum.Enum):
    """What the shell around the rules reports."""

    OPENED = enum.auto()
    CLEAN = enum.auto()  # one canary was right
    FAILED = enum.auto()  # anything went wrong: opening, a canary, a frame
    REOPEN = enum.auto()  # it is to be given up and opened again: its settings changed
    RESTED = enum.auto()  # it is closed, and time has passed
    SERVED = enum.auto()  # it serves, and time has passed


@dataclass(frozen=True, slots=True)
class Limits:
    """How careful to be. A device that is back serves again within 60 s, unless it flaps.

    `canaries` clean runs in a row promote. A pause before opening again begins at `pause_s`, grows
    by `growth` up to `longest_pause_s`, and is shortened by up to `jitter` of itself, so that a
    fleet that lost power together does not draw its peak current together. Healthy again after
    `settle_s` of service. `flaps` falls from service within `flap_window_s` hold it down for
    `flap_pause_s`. `check_every_s`: a canary while it serves. A p95 of `drift` times its baseline
    is worth an event (a Coral behind USB 2 takes 2.3 times as long), canaries of `too_slow` times
    are a failure; `noise_ms` more or less says nothing.
    """

    canaries: int = 5
    pause_s: float = 1.0
    growth: float = 2.0
    longest_pause_s: float = 40.0
    jitter: float = 0.25
    settle_s: float = 60.0
    flaps: int = 4
    flap_window_s: float = 600.0
    flap_pause_s: float = 300.0
    check_every_s: float = 60.0
    drift: float = 1.8
    too_slow: float = 5.0
    noise_ms: float = 2.0


@dataclass(frozen=True, slots=True)
class Status:
    """Where the accelerator is. `until_s`: when that ends by itself; `clean`: canaries in a row.

    `failures`: since it was last healthy. `falls_s`: when it fell from service, within the window.
    """

    state: State = State.OPENING
    until_s: float = math.inf
    clean: int = 0
    failures: int = 0
    falls_s: tuple[float, ...] = ()
    promotions: int = 0
    canaries: int = 0

    @property
    def serves(self) -> bool:
        """Whether frames go to the accelerator."""
        return self.state in (State.PROMOTED, State.HEALTHY)


def step(
    limits: Limits, status: Status, happening: Happening, now_s: float, chance: float = 0.0
) -> Status:
    """Return the status after `happening`; `chance` in 0..1 shortens a pause by its jitter.

    What cannot happen in a state (a late report about a device already given up) changes nothing.
    """
    match happening, status.state:
        case Happening.FAILED, state if state is not State.BACKING_OFF:
            status = _fall(limits, status, now_s, chance)
        case Happening.REOPEN, state if state is not State.BACKING_OFF:
            status = replace(status, state=State.BACKING_OFF, until_s=now_s, clean=0)
        case Happening.OPENED, State.OPENING:
            status = replace(status, state=State.CANARY)
        case Happening.CLEAN, State.CANARY:
            status = _passed(limits, status, now_s)
        case Happening.CLEAN, State.PROMOTED | State.HEALTHY:
            status = replace(status, canaries=status.canaries + 1)
        case Happening.RESTED, State.BACKING_OFF if now_s >= status.until_s:
            status = replace(status, state=State.OPENING, until_s=math.inf)
        case Happening.SERVED, State.PROMOTED if now_s >= status.until_s:
            status = replace(status, state=State.HEALTHY, until_s=math.inf, failures=0)
    return status


def _passed(limits: Limits, status: Status, now_s: float) -> Status:
    status = replace(status, clean=status.clean + 1, canaries=status.canaries + 1)
    if status.clean < limits.canaries:
        return status
    return replace(
        status,
        state=State.PROMOTED,
        until_s=now_s + limits.settle_s,
        promotions=status.promotions + 1,
    )


def _fall(limits: Limits, status: Status, now_s: float, chance: float) -> Status:
    falls_s = tuple(fell_s for fell_s in status.falls_s if fell_s > now_s - limits.flap_window_s)
    if status.serves:
        falls_s += (now_s,)
    # Capped: a float cannot hold what years of doubling make of a pause.
    grown_s = limits.pause_s * limits.growth ** min(status.failures, 50)
    pause_s = min(grown_s, limits.longest_pause_s)
    if status.serves and len(falls_s) >= limits.flaps:
        pause_s = limits.flap_pause_s
    return replace(
        status,
        state=State.BACKING_OFF,
        until_s=now_s + pause_s * (1 - limits.jitter * chance),
        clean=0,
        failures=status.failures + 1,
        falls_s=falls_s,
    )
