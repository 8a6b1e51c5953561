"""One machine for all tests here: each leaves it serving."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance import image
from tests.appliance.guest import Guest

ARCHITECTURE = os.environ.get("APPLIANCE_ARCH") or image.debian_architecture()


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Take the place of the other tests' check: here a machine outlives the tests, as it should."""


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Run the machine."""
    folder: Path = tmp_path_factory.mktemp("machine")
    with Guest("cam-1", folder, image.image(ARCHITECTURE), image.qemu_tree()) as guest:
        guest.start()
        yield guest
