"""A device's own best latency, which a change must not worsen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_app.errors import EdgeAppError
from edge_app.files import write_file

_SLACK_MS = 10.0  # twice a few milliseconds is noise, not a worse release


@dataclass(frozen=True, slots=True)
class Baseline:
    """A file of the best p95 so far, in milliseconds, by what it was measured of."""

    path: Path

    def judge(self, key: str, p95_ms: float, slower_by: float) -> list[str]:
        """Compare with the best so far, and remember a better one.

        Never raised by itself: releases that are each a little slower must not add up unseen.
        """
        known = self._read()
        best_ms = known.get(key, p95_ms)
        allowed_ms = max(best_ms * slower_by, best_ms + _SLACK_MS)
        if p95_ms > allowed_ms:
            return [
                f"p95 is {p95_ms:.1f} ms; allowed: {allowed_ms:.1f} ms, for it has been "
                f"{best_ms:.1f} ms here (remove {self.path} if that no longer counts)"
            ]
        if p95_ms < best_ms or key not in known:
            write_file(self.path, msgspec.json.format(msgspec.json.encode(known | {key: p95_ms})))
        return []

    def _read(self) -> dict[str, float]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, float])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise EdgeAppError(f"{self.path}: {error}", hint="remove it") from error
