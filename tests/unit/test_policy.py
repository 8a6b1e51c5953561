"""When a result is sent: sequences of frames in, triggers out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.domain import Label
from edge_app.policy import Rules, State, Trigger, decide
from edge_app.policy import shown as shown_of

Frame = tuple[float, dict[int, float]]  # seconds, score by class index

CAT, DOG = 1, 2
SHARP = Rules(smoothing_s=0, hysteresis=0, min_interval_s=0, heartbeat_s=0)


def labels(scores: dict[int, float]) -> tuple[Label, ...]:
    best_first = sorted(scores, key=lambda index: (-scores[index], index))
    return tuple(Label(index, f"class {index}", scores[index]) for index in best_first)


def play(rules: Rules, frames: list[Frame]) -> list[Trigger | None]:
    state, triggers = State(), []
    for now_s, scores in frames:
        state, trigger = decide(rules, state, labels(scores), now_s)
        triggers.append(trigger)
    return triggers


def steady(scores: dict[int, float], *, start_s: float, seconds: float) -> list[Frame]:
    """Ten frames a second that all show the same."""
    return [(start_s + step / 10, scores) for step in range(round(seconds * 10))]


def test_the_first_result_goes_out_at_once() -> None:
    assert play(Rules(), [(100.0, {CAT: 0.9})]) == ["change"]
    assert play(Rules(), [(0.0, {CAT: 0.1})]) == ["change"]  # "nothing" is news as well
    assert play(Rules(), [(0.0, {})]) == ["change"]


def test_a_change_is_sent_once() -> None:
    frames = [(0.0, {CAT: 0.9}), (5.0, {CAT: 0.9}), (6.0, {DOG: 0.9}), (7.0, {DOG: 0.9})]
    assert play(SHARP, frames) == ["change", None, "change", None]


def test_a_change_to_nothing_and_back() -> None:
    frames = [(0.0, {CAT: 0.9}), (5.0, {CAT: 0.1}), (6.0, {}), (7.0, {CAT: 0.9})]
    assert play(SHARP, frames) == ["change", "change", None, "change"]


@pytest.mark.parametrize(("score", "leads"), [(0.3, True), (0.2999, False)])
def test_the_threshold_itself_is_enough(score: float, leads: bool) -> None:
    _, trigger = decide(SHARP, State(sent=None, sent_s=0.0), labels({CAT: score}), 1.0)
    assert (trigger == "change") == leads


def test_hysteresis_keeps_the_leader_until_clearly_beaten() -> None:
    rules = Rules(smoothing_s=0, hysteresis=0.1, min_interval_s=0, heartbeat_s=0)
    frames = [
        (0.0, {CAT: 0.5, DOG: 0.4}),
        (1.0, {CAT: 0.45, DOG: 0.54}),  # better, but not by 0.1
        (2.0, {CAT: 0.4, DOG: 0.56}),
    ]
    assert play(rules, frames) == ["change", None, "change"]


def test_hysteresis_below_the_threshold() -> None:
    rules = Rules(threshold=0.3, smoothing_s=0, hysteresis=0.1, min_interval_s=0, heartbeat_s=0)
    frames = [(0.0, {CAT: 0.5}), (1.0, {CAT: 0.25}), (2.0, {CAT: 0.19})]
    assert play(rules, frames) == ["change", None, "change"]


def test_flicker_between_two_labels_does_not_flood() -> None:
    frames = [
        (step / 30, {CAT: 0.6, DOG: 0.3} if step % 2 else {CAT: 0.3, DOG: 0.6})
        for step in range(600)
    ]
    assert play(Rules(heartbeat_s=0), frames).count("change") <= 2
    # It is the smoothing that does it: without, one frame in thirty would still go out.
    assert play(Rules(heartbeat_s=0, smoothing_s=0), frames).count("change") > 10


def test_a_single_odd_frame_is_no_change() -> None:
    frames = steady({CAT: 0.9}, start_s=0, seconds=3)
    frames += [(3.0, {DOG: 0.9})]
    frames += steady({CAT: 0.9}, start_s=3.1, seconds=3)
    assert play(Rules(heartbeat_s=0), frames) == ["change", *[None] * 60]


def test_heartbeat() -> None:
    rules = Rules(heartbeat_s=1.0)
    triggers = play(rules, [(step / 4, {CAT: 0.9}) for step in range(13)])
    assert [step for step, trigger in enumerate(triggers) if trigger] == [0, 4, 8, 12]
    assert set(triggers) == {"change", "heartbeat", None}


def test_no_heartbeat() -> None:
    frames = [(0.0, {CAT: 0.9}), (86_400.0, {CAT: 0.9})]
    assert play(Rules(heartbeat_s=0), frames) == ["change", None]


def test_every() -> None:
    frames = steady({CAT: 0.9}, start_s=0, seconds=2)
    assert play(Rules(mode="every"), frames) == ["every"] * 20


def test_changes_are_held_back_by_the_rate_limit_but_not_lost() -> None:
    rules = Rules(smoothing_s=0, hysteresis=0, min_interval_s=1.0, heartbeat_s=0)
    frames = [(0.0, {CAT: 0.9}), (0.5, {DOG: 0.9}), (0.9, {DOG: 0.9}), (1.0, {DOG: 0.9})]
    assert play(rules, frames) == ["change", None, None, "change"]


def test_two_cameras_do_not_disturb_each_other() -> None:
    alone = play(Rules(), steady({CAT: 0.9}, start_s=0, seconds=3))
    one, other = State(), State()
    beside = []
    for now_s, scores in steady({CAT: 0.9}, start_s=0, seconds=3):
        one, trigger = decide(Rules(), one, labels(scores), now_s)
        beside.append(trigger)
        other, _ = decide(Rules(), other, labels({DOG: 0.9}), now_s)
    assert beside == alone


def test_what_is_forgotten_does_not_pile_up() -> None:
    state = State()
    for step in range(5000):
        state, _ = decide(Rules(), state, labels({step % 1000: 0.5}), step / 10)
    assert len(state.smoothed) < 50


scores = st.dictionaries(st.integers(0, 4), st.floats(0, 1), max_size=4)
rules_of_changes = st.builds(
    Rules,
    threshold=st.floats(0, 1),
    heartbeat_s=st.sampled_from([0.0, 0.5, 3.0]),
    smoothing_s=st.sampled_from([0.0, 0.1, 0.5, 5.0]),
    hysteresis=st.sampled_from([0.0, 0.1, 1.0]),
    min_interval_s=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
)


@st.composite
def sequences(draw: st.DrawFn) -> list[Frame]:
    now_s, frames = draw(st.floats(0, 1e6)), []
    for gap_s, shown in draw(st.lists(st.tuples(st.floats(0, 2), scores), max_size=60)):
        now_s += gap_s
        frames.append((now_s, shown))
    return frames


@given(rules_of_changes, sequences())
def test_promises_of_changes(rules: Rules, frames: list[Frame]) -> None:
    state, sent_s = State(), -math.inf
    for now_s, shown in frames:
        before_s = sent_s
        state, trigger = decide(rules, state, labels(shown), now_s)
        if trigger is not None:
            sent_s = now_s
        if trigger == "change":
            assert now_s - before_s >= rules.min_interval_s
            best = labels(shown)[:1]
            top = best[0].index if best and best[0].score >= rules.threshold else None
            assert top == state.leader
        if rules.heartbeat_s and math.isfinite(sent_s):
            assert now_s - sent_s < rules.heartbeat_s  # or this very frame would have been sent
        if not rules.heartbeat_s:
            assert trigger != "heartbeat"
        assert all(score >= 0 for score in state.smoothed.values())


@given(rules_of_changes, sequences())
def test_every_means_each(rules: Rules, frames: list[Frame]) -> None:
    every = Rules("every", rules.threshold, rules.heartbeat_s, rules.smoothing_s)
    assert play(every, frames) == ["every"] * len(frames)


def test_a_repetition_is_a_heartbeat_unless_there_is_more_to_say() -> None:
    rules = Rules(heartbeat_s=60)
    state, _ = decide(rules, State(), labels({CAT: 0.9}), 0.0)
    state, trigger = decide(rules, state, labels({CAT: 0.9}), 0.1, repeat=True)
    assert trigger == "heartbeat"
    _, trigger = decide(rules, state, labels({CAT: 0.9}), 59.0)
    assert trigger is None  # the next one is due a minute after the repetition
    _, trigger = decide(SHARP, State(sent=CAT, sent_s=0.0), labels({DOG: 0.9}), 5.0, repeat=True)
    assert trigger == "change"


def test_a_result_shows_the_best_that_reach_the_threshold() -> None:
    seen = labels({CAT: 0.5, DOG: 0.4, 3: 0.29, 4: 0.1})
    assert [label.index for label in shown_of(Rules(top_k=3), seen)] == [CAT, DOG]
    assert [label.index for label in shown_of(Rules(top_k=1), seen)] == [CAT]
