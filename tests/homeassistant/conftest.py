"""A Home Assistant of its own for each test, connected to the test's broker.

`make test-homeassistant` installs one and says in HOMEASSISTANT_PYTHON where it is; without that,
as in `make test`, these tests are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import Mosquitto
from tests.homeassistant.hass import HomeAssistant, home_assistant_running

PYTHON = os.environ.get("HOMEASSISTANT_PYTHON", "")

if not PYTHON:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def home(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[HomeAssistant]:
    folder = tmp_path / "homeassistant"
    folder.mkdir()
    with home_assistant_running(Path(PYTHON), folder) as home:
        home.use_broker(mosquitto.port)
        yield home
