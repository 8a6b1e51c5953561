"""`edge-app watch` against a real broker that goes and comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edge_app.config import Mqtt
from edge_app.domain import Event
from edge_app.errors import EXIT_UNAVAILABLE, UsageError
from edge_app.publish import wire
from edge_app.publish.link import Broker
from edge_app.publish.mqtt import MqttPublisher
from edge_app.publish.spool import Spool
from edge_app.tools import watch
from edge_app.tools.processes import free_port
from tests.brokers import Mosquitto
from tests.integration.test_appliance import write_config
from tests.spools import TOPICS, as_message, wait_until

COMMAND = [sys.executable, "-m", "edge_app", "watch", "--config"]


def told(process: subprocess.Popen[str], word: str) -> bool:
    """Read the process's lines up to one with `word`; the test's time limit bounds the wait."""
    return any(word in line for line in process.stdout or ())


@contextmanager
def publishing(port: int) -> Iterator[MqttPublisher]:
    broker = Broker("127.0.0.1", port, "edge-app-t")
    online = wire.status_message(TOPICS, online=True)
    offline = wire.status_message(TOPICS, online=False)
    with closing(MqttPublisher(broker, Spool(1_000_000), online, offline)) as publisher:
        yield publisher


def test_it_outlives_the_broker_and_shows_events(tmp_path: Path, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port)
    process = subprocess.Popen(
        [*COMMAND, str(config), "t"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        # The status of a device that left is retained, so it shows that the view listens.
        with publishing(mosquitto.port) as publisher:
            wait_until(lambda: publisher.state()[1].connects == 1)
        assert told(process, "waiting for what edge/t says")
        assert told(process, "t is offline")
        with publishing(mosquitto.port) as publisher:
            publisher.offer(as_message(Event("fallback", "the device was pulled out")))
            assert told(process, "t fallback: the device was pulled out")
            mosquitto.kill()
            assert told(process, "is away; trying again")
            mosquitto.start()
            wait_until(lambda: publisher.state()[1].connects == 2)
        assert told(process, "t is offline")
    finally:
        process.kill()
        process.communicate()


def test_a_broker_that_was_never_there_is_an_error(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port())
    done = subprocess.run(
        [*COMMAND, str(config)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == EXIT_UNAVAILABLE
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("device", ["a/#", "#", "po+ch", "porch/result"])
def test_only_a_device_can_be_watched(device: str) -> None:
    with pytest.raises(UsageError, match="allowed: one device's id, or \\+ for all"):
        watch.run(Mqtt("mqtt://127.0.0.1:1"), device, seconds=1)
