"""`edge-app demo`: the appliance on sample photos with a broker of its own, nothing to set up.

The appliance is `edge-app run` with an ordinary configuration file; the view is `edge-app watch`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from edge_app.catalog import shipped_dir
from edge_app.errors import EXIT_OK, EdgeAppError
from edge_app.publish.link import Broker
from edge_app.tools.processes import free_port, running, wait_until_open
from edge_app.tools.watch import watch

_FPS = 2


def run(*, seconds: float | None) -> int:
    """Run the demo until `seconds` have passed or Ctrl-C."""
    if importlib.util.find_spec("amqtt") is None:
        raise EdgeAppError(
            "the demo's broker is not installed", hint="pip install 'edge-app[demo]'"
        )
    port = free_port()
    notes = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-app-demo-")))
        notes.print("starting the broker and the appliance ...", style="dim")
        # What the parts log would tear the live view apart; it is shown if one of them fails.
        journal = stack.enter_context((folder / "log").open("w+b"))
        broker_program = _module("edge_app.tools.demo_broker", str(port))
        wait_until_open(port, stack.enter_context(running(broker_program, journal)))
        config = folder / "config.toml"
        config.write_text(configuration(port), encoding="utf-8")
        appliance = stack.enter_context(
            running(_module("edge_app", "run", "--config", str(config)), journal)
        )
        footer = f"see it from another shell: mosquitto_sub -h 127.0.0.1 -p {port} -t 'edge/#' -v"
        notes.print(footer, highlight=False, soft_wrap=True)
        broker = Broker("127.0.0.1", port, "edge-app-demo-view")
        seen: int | None = None  # unknown when Ctrl-C ends it
        with contextlib.suppress(KeyboardInterrupt):
            seen = watch(
                broker,
                "edge/demo",
                seconds=seconds,
                goes_on=lambda: appliance.poll() is None,
                footer=footer,
            )
        if appliance.poll() is not None:
            _show(journal)
            raise EdgeAppError(
                f"the appliance ended with exit code {appliance.returncode}; it says why above"
            )
        if seen == 0:
            _show(journal)
            raise EdgeAppError(
                f"no result in {seconds:g} s; what the appliance said is above",
                hint="a slow machine may need longer to start: give more --seconds",
            )
    return EXIT_OK


def _show(journal: BinaryIO) -> None:
    journal.seek(0)
    sys.stderr.write(journal.read().decode(errors="replace"))


def configuration(port: int) -> str:
    """Return the demo's configuration file: sample photos in turn, every result published."""
    return f"""\
[device]
id = "demo"

[camera.samples]
source = "images:{shipped_dir() / "samples"}"
fps = {_FPS}

[publish]
mode = "every"

[mqtt]
url = "mqtt://127.0.0.1:{port}"
version = "3.1.1"  # the demo's broker waits for ever on an MQTT 5 greeting with a last will

[spool]
path = ""  # in memory: the broker goes when the demo goes

[stats]
interval_s = 2
"""


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]
