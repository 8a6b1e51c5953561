"""The flight recorder: the last minute, in memory, to tell why the appliance ended."""

from __future__ import annotations

from msgspec import Struct


class FlightRecord(Struct, frozen=True):
    """The last 60 s, oldest first: `seconds` has a row a second of what `columns` names."""

    columns: list[str]
    seconds: list[list[float | str | None]]
    events: list[dict[str, object]]
