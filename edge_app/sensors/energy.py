"""Readings of power into energy, and energy into what one inference costs. No input or output."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge_app.sensors.power import MAX_W, Reading
from edge_app.stats import Power

MAX_GAP_S = 5.0  # what was taken between two readings further apart is not known
_SLACK_S = 1.5  # readings are a second apart, and do not come when a window ends
MIN_IDLE_S = 5.0  # a shorter window is too few readings for a baseline


@dataclass(frozen=True, slots=True)
class Energy:
    """What `source` measured since it was first read: `joules`, over the `measured_s` it covers."""

    source: str
    joules: float = 0.0
    measured_s: float = 0.0
    newest_w: float | None = None  # None: the newest reading failed, or is the first of a counter


class EnergyMeter:
    """Integrates readings: differences of a counter, or the trapezoid between two powers."""

    def __init__(self) -> None:
        self._before: tuple[int, Reading] | None = None
        self._energy: Energy | None = None

    def add(self, now_ns: int, reading: Reading | None) -> Energy | None:
        """Return the energy up to `reading`, taken at `now_ns` (monotonic). None: no source yet.

        Another source starts at zero: what two sources measured is not one sum.
        """
        if reading is None:
            if self._energy is not None:
                self._energy = replace(self._energy, newest_w=None)
            return self._energy
        energy = self._energy
        if energy is None or energy.source != reading.source:
            energy, self._before = Energy(reading.source), None
        step_j = step_s = 0.0
        newest_w = reading.watts
        if self._before is not None:
            step_s = (now_ns - self._before[0]) / 1e9
            joules = _between(self._before[1], reading, step_s)
            step_j, step_s = (0.0, 0.0) if joules is None else (joules, step_s)
            if newest_w is None and joules is not None:
                newest_w = joules / step_s
        self._before = (now_ns, reading)
        self._energy = Energy(
            energy.source, energy.joules + step_j, energy.measured_s + step_s, newest_w
        )
        return self._energy


def _between(before: Reading, after: Reading, elapsed_s: float) -> float | None:
    """Return the joules taken between two readings; None when that is not known."""
    if not 0 < elapsed_s <= MAX_GAP_S:
        return None
    if before.watts is not None and after.watts is not None:
        return (before.watts + after.watts) / 2 * elapsed_s
    if before.counter_uj is None or after.counter_uj is None:
        return None
    difference_uj = after.counter_uj - before.counter_uj
    if difference_uj < 0 and after.wraps_uj is not None:
        difference_uj += after.wraps_uj
    # A counter that was reset, or jumped, is no measurement of what was taken meanwhile.
    joules = difference_uj / 1e6
    return joules if 0 <= joules <= MAX_W * elapsed_s else None


class PowerReport:
    """Turns the running total into one window's power, and remembers the idle baseline.

    Idle is measured, not assumed: the mean power of the newest window without any inference that
    followed another such window (so neither loading nor an inference's tail is in it).
    """

    def __init__(self) -> None:
        self._before: Energy | None = None
        self._idle_w: float | None = None
        self._idle_windows = 0

    def read(self, energy: Energy | None, window_s: float, inferred: int) -> Power:
        """Report on a window of `window_s` in which `inferred` frames went through the model."""
        before, self._before = self._before, energy
        if energy is None:
            return Power()
        if before is None or before.source != energy.source:
            self._idle_w, self._idle_windows = None, 0
            before = Energy(energy.source)
        measured_s = energy.measured_s - before.measured_s
        joules = energy.joules - before.joules
        watts = joules / measured_s if measured_s > 0 else energy.newest_w
        if watts is None:
            return Power()
        whole = measured_s > 0 and measured_s >= window_s - _SLACK_S
        self._learn_idle(watts, inferred, long_enough=whole and measured_s >= MIN_IDLE_S)
        inferences = inferred if whole else 0  # the power of a part says nothing about the rest
        return Power(
            watts=round(watts, 3),
            source=energy.source,
            energy_j=round(joules, 3) if whole else None,
            energy_total_j=round(energy.joules, 3),
            idle_watts=None if self._idle_w is None else round(self._idle_w, 3),
            mj_per_inference=_mj_each(watts, window_s, inferences),
            mj_per_inference_above_idle=self._above_idle(watts, window_s, inferences),
        )

    def _learn_idle(self, watts: float, inferred: int, *, long_enough: bool) -> None:
        self._idle_windows = self._idle_windows + 1 if inferred == 0 else 0
        if self._idle_windows >= 2 and long_enough:
            self._idle_w = watts

    def _above_idle(self, watts: float, window_s: float, inferred: int) -> float | None:
        if self._idle_w is None or watts <= self._idle_w:  # the noise is larger than the cost
            return None
        return _mj_each(watts - self._idle_w, window_s, inferred)


def _mj_each(watts: float, window_s: float, inferred: int) -> float | None:
    return round(1000 * watts * window_s / inferred, 2) if inferred else None
