"""A Home Assistant, connected to the test's broker: one of its own, or one for a whole module.

`make test-homeassistant` installs one and says in HOMEASSISTANT_PYTHON where it is; without that,
as in `make test`, these tests are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.brokers import Mosquitto, mosquitto_running
from tests.homeassistant.hass import HomeAssistant, home_assistant_running

PYTHON = os.environ.get("HOMEASSISTANT_PYTHON", "")

if not PYTHON:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def home(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[HomeAssistant]:
    """Run one that the test may restart, as it may its broker."""
    with connected(tmp_path, mosquitto) as home:
        yield home


@pytest.fixture(scope="module")
def lasting_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto_running(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def lasting_home(
    tmp_path_factory: pytest.TempPathFactory, lasting_mosquitto: Mosquitto
) -> Iterator[HomeAssistant]:
    """Run one for tests that leave it as they found it."""
    with connected(tmp_path_factory.mktemp("home"), lasting_mosquitto) as home:
        yield home


@contextmanager
def connected(folder: Path, broker: Mosquitto) -> Iterator[HomeAssistant]:
    installation = folder / "homeassistant"
    installation.mkdir()
    with home_assistant_running(Path(PYTHON), installation) as home:
        home.use_broker(broker.port)
        yield home
