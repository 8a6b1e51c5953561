"""Which results are worth sending. Pure: state in, state and answer out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edge_app.domain import Label

Trigger = Literal["every", "change", "heartbeat"]

_FORGET = 1e-3  # smoothed scores below this are as good as zero


@dataclass(frozen=True, slots=True)
class Rules:
    """When to send.

    every: each result. changes: when the label that leads after smoothing (time constant
    `smoothing_s`) is another one, and `heartbeat_s` after the last message (0: never).
    A label takes the lead at `threshold`, from another only by `hysteresis` more than its score,
    and loses it to nothing below `threshold - hysteresis`. Changes are `min_interval_s` apart.
    A result shows at most `top_k` labels.
    """

    mode: Literal["every", "changes"] = "changes"
    threshold: float = 0.3
    heartbeat_s: float = 60.0
    smoothing_s: float = 0.5
    hysteresis: float = 0.1
    min_interval_s: float = 1.0
    top_k: int = 3


@dataclass(frozen=True, slots=True)
class State:
    """What a camera has shown so far. Labels are class indices; None is "nothing"."""

    smoothed: Mapping[int, float] = field(default_factory=dict)
    updated_s: float = -math.inf
    leader: int | None = None
    sent: int | None = None
    sent_s: float = -math.inf


def decide(
    rules: Rules, state: State, labels: Sequence[Label], now_s: float, *, repeat: bool = False
) -> tuple[State, Trigger | None]:
    """Take in one frame's `labels` (best first, below the threshold too); say why to send it.

    A change is sent with the first frame that itself shows the new leader, so that a message never
    contradicts the reason for it. With `repeat` a heartbeat is due now.
    """
    smoothed = _smooth(state.smoothed, labels, _weight(now_s - state.updated_s, rules.smoothing_s))
    leader = _lead(rules, smoothed, state.leader)
    state = replace(state, smoothed=smoothed, updated_s=now_s, leader=leader)
    first = next((label.index for label in shown(rules, labels)), None)
    trigger = _trigger(rules, state, first, now_s)
    if trigger is None and repeat:
        trigger = "heartbeat"
    if trigger is not None:
        state = replace(state, sent=first, sent_s=now_s)
    return state, trigger


def shown(rules: Rules, labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return those of `labels` (best first) that a result shows."""
    return tuple(label for label in labels[: rules.top_k] if label.score >= rules.threshold)


def _trigger(rules: Rules, state: State, first: int | None, now_s: float) -> Trigger | None:
    if rules.mode == "every":
        return "every"
    silent_s = now_s - state.sent_s
    is_news = state.leader != state.sent or math.isinf(silent_s)
    if is_news and first == state.leader and silent_s >= rules.min_interval_s:
        return "change"
    if rules.heartbeat_s and silent_s >= rules.heartbeat_s:
        return "heartbeat"
    return None


def _weight(elapsed_s: float, time_constant_s: float) -> float:
    """Return the new value's weight in an exponential moving average over uneven steps."""
    return 1 - math.exp(-elapsed_s / time_constant_s) if time_constant_s > 0 else 1.0


def _smooth(
    before: Mapping[int, float], labels: Sequence[Label], weight: float
) -> Mapping[int, float]:
    after = {index: score * (1 - weight) for index, score in before.items()}
    for label in labels:
        after[label.index] = after.get(label.index, 0.0) + weight * label.score
    return {index: score for index, score in after.items() if score >= _FORGET}


def _lead(rules: Rules, smoothed: Mapping[int, float], leader: int | None) -> int | None:
    # The lower index wins a tie, as in the decoded labels.
    best = min(smoothed, key=lambda index: (-smoothed[index], index), default=None)
    score = smoothed.get(leader, 0.0) if leader is not None else 0.0
    holds = leader is not None and score >= rules.threshold - rules.hysteresis
    if best is None or smoothed[best] < rules.threshold:
        return leader if holds else None
    if holds and smoothed[best] <= score + rules.hysteresis:
        return leader
    return best
