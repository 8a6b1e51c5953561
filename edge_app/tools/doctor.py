"""`edge-app doctor`: is everything as it should be here, and if not, what to do?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from edge_app import config
from edge_app.config import Config
from edge_app.engine.survey import survey
from edge_app.errors import EXIT_CONFIG, EXIT_OK, EXIT_UNAVAILABLE, ConfigError
from edge_app.sensors.clock import read_clock
from edge_app.sensors.thermal import read_thermal
from edge_app.sensors.throttle import ThrottleSensor
from edge_app.sensors.vcgencmd import Vcgencmd
from edge_app.tools import checkup
from edge_app.tools.checkup import Check, Status

CONFIGURATION = "configuration"
_MARKS: dict[Status, str] = {
    "ok": "[green]ok     [/]",
    "warning": "[yellow]warning[/]",
    "failed": "[red]FAILED [/]",
    "skipped": "[dim]skipped[/]",
}


def run(path: Path, *, as_json: bool) -> int:
    """Print every check as it is done. Returns 0 only when none failed."""
    show = _print_json if as_json else _print_line
    failed = []
    for check in examine(path):
        show(check)
        failed += [check.name] if check.status == "failed" else []
    if not failed:
        return EXIT_OK
    return EXIT_CONFIG if CONFIGURATION in failed else EXIT_UNAVAILABLE


def examine(path: Path) -> Iterator[Check]:
    """Yield the result of every check; those that need the configuration only when it is good."""
    try:
        found = config.load(path)
    except ConfigError as error:
        seen = "; ".join((str(error), *error.faults))
        yield Check(CONFIGURATION, "failed", seen, cure=error.hint)
    else:
        yield Check(CONFIGURATION, "ok", str(path))
        yield from _configured(found)
    yield checkup.check_clock(read_clock().synced)
    yield checkup.check_supply(ThrottleSensor(Vcgencmd("get_throttled")).read())
    yield checkup.check_heat(read_thermal())
    yield checkup.check_service()


def _configured(found: Config) -> Iterator[Check]:
    appliances = checkup.running_appliances()
    yield checkup.check_model(found.model)
    yield checkup.check_edgetpu(found.model, survey(), os.sysconf("SC_PAGE_SIZE"))
    for name, camera in found.camera.items():
        yield checkup.check_camera(name, camera, appliances)
    yield checkup.check_broker(found.mqtt, found.device.id)
    yield checkup.check_spool(found.spool)
    yield checkup.check_power(found.power.source)


def _print_json(check: Check) -> None:
    print(json.dumps(asdict(check), ensure_ascii=False), flush=True)


def _print_line(check: Check) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{_MARKS[check.status]} {check.name:14}", end=" ")
    console.print(check.evidence, markup=False)
    for what, text in (("cause", check.cause), ("cure", check.cure)):
        if text:
            console.print(f"{'':23}{what}: {text}", markup=False)
