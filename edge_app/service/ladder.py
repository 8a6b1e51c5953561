"""What to do about a USB accelerator that stays away though it is plugged in: rung by rung. Pure.

Below the first rung here is what the appliance does by itself: a new process for the device.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

DAY_S = 86_400.0
# Asked again within this time, the last rung did not help, and the next one is climbed. Longer than
# the appliance's longest pause between two tries to open the device.
CLIMB_WITHIN_S = 3600.0


class Rung(enum.StrEnum):
    """From what disturbs least to what disturbs most."""

    RESET = "reset"
    POWER = "power"
    REBOOT = "reboot"


RUNGS = tuple(Rung)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A rung that was tried, at so many seconds since 1970."""

    rung: Rung
    at_s: float


def within_a_day(history: Sequence[Attempt], now_s: float) -> tuple[Attempt, ...]:
    """Return the attempts that count against the budgets.

    Those of a day to come too: a Pi starts with a wrong clock, and must not be free to reboot again
    and again because of it.
    """
    return tuple(attempt for attempt in history if abs(now_s - attempt.at_s) < DAY_S)


def next_rung(
    history: Sequence[Attempt],
    now_s: float,
    a_day: Mapping[Rung, int],
    able: Collection[Rung],
) -> Rung | None:
    """Return the rung to try now, or None when there is nothing left to try.

    `history`: oldest first. `a_day`: how often a rung may be tried in any 24 hours. `able`: the
    rungs this machine has. What is skipped for its budget or because the machine lacks it counts as
    tried: the next one is due.
    """
    counted = within_a_day(history, now_s)
    first = 0
    if counted and abs(now_s - counted[-1].at_s) < CLIMB_WITHIN_S:
        first = RUNGS.index(counted[-1].rung) + 1
    for rung in RUNGS[first:]:
        spent = sum(attempt.rung is rung for attempt in counted)
        if rung in able and spent < a_day[rung]:
            return rung
    return None
