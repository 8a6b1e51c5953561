"""How soon to try a broker again, and when certificates cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_app.errors import ConfigError
from edge_app.publish.link import Broker, Retry, tls_context


def test_attempts_without_success_become_rare() -> None:
    retry, pauses_s = Retry(), []
    for _ in range(10):
        retry = retry.after(held_s=0, refusal="")
        pauses_s.append(retry.pause_s)
    assert pauses_s == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_connection_that_held_starts_anew() -> None:
    assert Retry(60).after(held_s=3600, refusal="").pause_s == 0.5


def test_a_connection_lost_at_once_does_not() -> None:
    assert Retry(8).after(held_s=0.1, refusal="").pause_s == 16


@pytest.mark.parametrize("refusal", ["Not authorized", "Bad user name or password", "Banned"])
def test_a_refusal_is_not_asked_again_soon(refusal: str) -> None:
    assert Retry().after(held_s=0, refusal=refusal).pause_s == 60


def test_pauses_differ_within_their_bound() -> None:
    drawn = {Retry(8).jittered_s() for _ in range(50)}
    assert len(drawn) > 10
    assert all(4 <= pause_s <= 8 for pause_s in drawn)


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    for file in (broken, tmp_path / "absent.pem", tmp_path):
        broker = Broker("h", 8883, "t", tls=True, ca_file=str(file))
        with pytest.raises(ConfigError, match="certificates cannot be used"):
            tls_context(broker)
