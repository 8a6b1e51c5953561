"""Prints one table at the end of a run: what each device runs, and what it measured.

A callback and not a task, so that it also comes when a batch failed and ended the run. The records
are what the playbooks hand to `set_stats` for each host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: fleet_report
    type: aggregate
    short_description: one table of what each device runs and measured
    description: Prints what the playbooks hand to set_stats, a row for each device.
"""
COLUMNS = ("release", "backend", "fps", "p95_ms", "label", "restarts", "certificate", "outcome")


def outcome(record: Mapping[str, Any], summary: Mapping[str, int] | None) -> str:
    """Return the last word on a host. `summary`: Ansible's counts, None if it had no turn."""
    if summary is None:
        return "not touched"
    words = [str(record["outcome"])] if "outcome" in record else []
    if record.get("faults"):
        words.append("not healthy: " + "; ".join(record["faults"]))
    elif record.get("healthy"):
        words.append("healthy")  # what runs now, also where something was taken back
    if not words and (summary["unreachable"] or summary["ignored"]):
        words.append("unreachable")
    elif not words and summary["failures"]:
        words.append("failed, see above")
    return "; ".join(words)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay out rows with a `host`; columns that nobody fills are left out."""
    shown = [{key: str(value) for key, value in row.items() if value is not None} for row in rows]
    columns = ["host", *(name for name in COLUMNS if any(row.get(name) for row in shown))]
    lines = [{name: name for name in columns}, *shown]
    widths = {name: max(len(line.get(name, "-")) for line in lines) for name in columns}
    return "\n".join(
        "  ".join(line.get(name, "-").ljust(widths[name]) for name in columns).rstrip()
        for line in lines
    )


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """What Ansible calls."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "fleet_report"

    def __init__(self) -> None:
        """Begin with no host."""
        super().__init__()
        self._hosts: list[str] = []

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Note who is to have a turn, whether they get it or not."""
        manager = play.get_variable_manager()
        everyone = manager.get_vars(play=play, include_hostvars=False)["ansible_play_hosts_all"]
        self._hosts += [host for host in everyone if host not in self._hosts]

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the table, if there is something to tell."""
        rows = []
        for host in self._hosts:
            record = stats.custom.get(host, {})
            summary = stats.summarize(host) if host in stats.processed else None
            rows.append({"host": host, **record, "outcome": outcome(record, summary)})
        told = [row for row in rows if row["outcome"]]
        if any(row["outcome"] != "not touched" for row in told):
            self._display.banner("FLEET")
            self._display.display(table(told))
