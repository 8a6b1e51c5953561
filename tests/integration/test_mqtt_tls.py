"""TLS to a real broker, with certificates of the tests' own making."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from edge_app import publishers
from edge_app.config import CameraConfig, Config, Mqtt, Spool
from edge_app.errors import EdgeAppError
from edge_app.publish import link
from edge_app.publish.clear import clear_retained
from edge_app.publish.link import Broker
from edge_app.publish.listen import listening
from edge_app.publish.wire import Topics
from tests.brokers import mosquitto_running
from tests.mqtt import PATIENCE_S, publishing, record, wait_until

# paho leaves the socket of a failed handshake to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

NOW = datetime.now(UTC)
EXPIRED: dict[str, Any] = {
    "not_before": NOW - timedelta(days=9),
    "not_after": NOW - timedelta(days=1),
}
NOT_YET: dict[str, Any] = {
    "not_before": NOW + timedelta(days=1),
    "not_after": NOW + timedelta(days=9),
}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    """Return an authority that nobody here has heard of."""
    return trustme.CA()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attempts to connect follow each other quickly."""
    monkeypatch.setattr(link, "_PAUSE_MAX_S", 0.05)


def write_server(folder: Path, authority: trustme.CA, *names: str, **validity: Any) -> list[str]:
    """Write a broker's certificate, and its authority's; returns the broker's options."""
    certificate = authority.issue_cert(*names, **validity)
    key, chain = folder / "server.key", folder / "server.pem"
    certificate.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return ["allow_anonymous true", f"certfile {chain}", f"keyfile {key}"]


def asking_for_ours(folder: Path, authority: trustme.CA) -> list[str]:
    """Return the options of a broker that lets in devices with a certificate of `authority`."""
    authority.cert_pem.write_to_path(str(folder / "devices.pem"))
    options = write_server(folder, authority, "localhost")
    return [*options, f"cafile {folder / 'devices.pem'}", "require_certificate true"]


def write_ours(folder: Path, authority: trustme.CA, **validity: Any) -> trustme.LeafCert:
    """Write the device's own certificate and key, as `write_text` would: not in one step."""
    device = authority.issue_cert("edge-app-t", **validity)
    device.private_key_and_cert_chain_pem.write_to_path(str(folder / "device.pem"))
    return device


def tls(folder: Path, *, with_ours: bool = False) -> dict[str, Any]:
    own = str(folder / "device.pem") if with_ours else ""
    return {
        "host": "localhost",
        "tls": True,
        "ca_file": str(folder / "ca.pem"),
        "cert_file": own,
        "key_file": own,
    }


def test_an_authority_of_ones_own(tmp_path: Path, authority: trustme.CA) -> None:
    options = write_server(tmp_path, authority, "localhost")
    with (
        mosquitto_running(tmp_path, options) as mosquitto,
        publishing(mosquitto.port, **tls(tmp_path)) as publisher,
    ):
        for number in range(500):
            publisher.offer(record(number))
        assert publisher.drain(PATIENCE_S)
        assert publisher.state()[1].connects == 1


def test_an_authority_made_by_hand(tmp_path: Path) -> None:
    """As the usual two `openssl` commands make it: no extension says what its keys are for."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "my own")])
    is_authority = x509.BasicConstraints(ca=True, path_length=None)
    authority = certificate(name, ca_key, is_authority, name, ca_key)
    ours = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    server = certificate(x509.Name([]), key, ours, name, ca_key)
    (tmp_path / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
    (tmp_path / "server.pem").write_bytes(server.public_bytes(Encoding.PEM))
    (tmp_path / "server.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    options = ["allow_anonymous true", f"certfile {tmp_path / 'server.pem'}"]
    options.append(f"keyfile {tmp_path / 'server.key'}")
    with (
        mosquitto_running(tmp_path, options) as mosquitto,
        publishing(mosquitto.port, **tls(tmp_path)) as publisher,
    ):
        publisher.offer(record(1))
        assert publisher.drain(PATIENCE_S)


def certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(extension, critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def test_a_certificate_of_the_devices_own(tmp_path: Path, authority: trustme.CA) -> None:
    write_ours(tmp_path, authority)
    with (
        mosquitto_running(tmp_path, asking_for_ours(tmp_path, authority)) as mosquitto,
        publishing(mosquitto.port, **tls(tmp_path, with_ours=True)) as publisher,
    ):
        publisher.offer(record(1))
        assert publisher.drain(PATIENCE_S)


@pytest.mark.parametrize(
    ("names", "validity", "told"),
    [
        (["localhost"], EXPIRED, "its certificate has expired: renew it"),
        (["localhost"], NOT_YET, "not yet valid: this device's clock says 20"),
        (["broker.example"], {}, "for another name: Hostname mismatch"),
    ],
    ids=["expired", "wrong-clock", "wrong-host"],
)
def test_a_broker_whose_certificate_is_no_good(
    tmp_path: Path, authority: trustme.CA, names: list[str], validity: dict[str, Any], told: str
) -> None:
    options = write_server(tmp_path, authority, *names, **validity)
    assert told in trouble_with(tmp_path, options, **tls(tmp_path))


def test_a_broker_of_an_unknown_authority(
    tmp_path: Path, authority: trustme.CA, stranger: trustme.CA
) -> None:
    options = write_server(tmp_path, stranger, "localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trouble = trouble_with(tmp_path, options, **tls(tmp_path))
    assert "not signed by one that" in trouble
    assert "ca.pem" in trouble


def test_a_broker_that_speaks_no_tls(tmp_path: Path, authority: trustme.CA) -> None:
    write_server(tmp_path, authority, "localhost")
    trouble = trouble_with(tmp_path, ["allow_anonymous true"], **tls(tmp_path))
    assert "does its port" in trouble
    assert "mqtt://" in trouble


def test_a_broker_that_wants_tls(tmp_path: Path, authority: trustme.CA) -> None:
    options = write_server(tmp_path, authority, "localhost")
    assert "mqtts://" in trouble_with(tmp_path, options)


def test_a_broker_that_wants_our_certificate(tmp_path: Path, authority: trustme.CA) -> None:
    options = asking_for_ours(tmp_path, authority)
    assert "set mqtt.cert_file" in trouble_with(tmp_path, options, **tls(tmp_path))


def test_our_certificate_has_expired(tmp_path: Path, authority: trustme.CA) -> None:
    write_ours(tmp_path, authority, **EXPIRED)
    options = asking_for_ours(tmp_path, authority)
    trouble = trouble_with(tmp_path, options, **tls(tmp_path, with_ours=True))
    assert "refuses this device's certificate" in trouble
    assert "device.pem: it has expired" in trouble


def test_our_certificate_was_revoked(tmp_path: Path, authority: trustme.CA) -> None:
    device = write_ours(tmp_path, authority)
    revoked = tmp_path / "revoked.pem"
    revoked.write_bytes(revocation_list(authority, device))
    options = [*asking_for_ours(tmp_path, authority), f"crlfile {revoked}"]
    trouble = trouble_with(tmp_path, options, **tls(tmp_path, with_ours=True))
    assert "it was revoked" in trouble


def test_our_certificate_is_a_strangers(
    tmp_path: Path, authority: trustme.CA, stranger: trustme.CA
) -> None:
    write_ours(tmp_path, stranger)
    options = asking_for_ours(tmp_path, authority)
    trouble = trouble_with(tmp_path, options, **tls(tmp_path, with_ours=True))
    assert "the broker does not know who signed it" in trouble


def test_who_only_listens_is_told_the_same(
    tmp_path: Path, authority: trustme.CA, stranger: trustme.CA
) -> None:
    write_ours(tmp_path, stranger)
    options = asking_for_ours(tmp_path, authority)
    with mosquitto_running(tmp_path, options) as mosquitto:
        broker = Broker(port=mosquitto.port, client_id="ear", **tls(tmp_path, with_ours=True))
        refused = pytest.raises(EdgeAppError, match="does not know who signed it")
        with refused, listening(broker, ["edge/#"]):
            pass
        with pytest.raises(EdgeAppError, match="does not know who signed it"):
            clear_retained(broker, ["edge/porch/info"])


def trouble_with(folder: Path, options: list[str], **broker: Any) -> str:
    """Try a mosquitto with `options`; returns what is wrong, once it has been found out."""
    with (
        mosquitto_running(folder, options) as mosquitto,
        publishing(mosquitto.port, **broker) as publisher,
    ):
        publisher.offer(record(1))
        wait_until(lambda: publisher.state()[1].trouble)
        spool, mqtt = publisher.state()
        assert (spool.queued, mqtt.connects) == (1, 0)
        return str(mqtt.trouble)


def revocation_list(authority: trustme.CA, device: trustme.LeafCert) -> bytes:
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    serial = x509.load_pem_x509_certificate(device.cert_chain_pems[0].bytes()).serial_number
    revoked = x509.RevokedCertificateBuilder(serial, NOW - timedelta(hours=1)).build()
    builder = x509.CertificateRevocationListBuilder(
        issuer.subject, NOW - timedelta(hours=1), NOW + timedelta(days=1), [], [revoked]
    )
    key: Any = load_pem_private_key(authority.private_key_pem.bytes(), None)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_trouble_is_logged_once(
    tmp_path: Path, authority: trustme.CA, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options = write_server(tmp_path, authority, "localhost", **NOT_YET)
    with (
        mosquitto_running(tmp_path, options) as mosquitto,
        publishing(mosquitto.port, **tls(tmp_path)),
    ):
        wait_until(lambda: caplog.text.count("not yet valid") > 3)
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"broker localhost:{mosquitto.port}: its certificate")


def test_certificates_change_without_a_restart(
    tmp_path: Path, authority: trustme.CA, stranger: trustme.CA, soon: None
) -> None:
    write_ours(tmp_path, authority)
    options = asking_for_ours(tmp_path, authority)
    with (
        mosquitto_running(tmp_path, options) as mosquitto,
        publishing(mosquitto.port, **tls(tmp_path, with_ours=True)) as publisher,
    ):
        publisher.offer(record(1))
        assert publisher.drain(PATIENCE_S)
        mosquitto.kill()
        publisher.offer(record(2))
        asking_for_ours(tmp_path, stranger)  # everybody moves to another authority, ...
        mosquitto.start()
        wait_until(lambda: "does not know who signed it" in (publisher.state()[1].trouble or ""))
        (tmp_path / "device.pem").write_text("half a certif")
        wait_until(lambda: "cannot be used" in (publisher.state()[1].trouble or ""))
        write_ours(tmp_path, stranger)  # ... and at last the device
        assert publisher.drain(PATIENCE_S)
        assert publisher.state()[1].connects == 2
        assert publisher.state()[1].trouble is None


def test_a_damaged_credential_does_not_keep_the_appliance_down(
    tmp_path: Path, authority: trustme.CA, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may have gone while somebody wrote it: results wait until it is written anew."""
    options = write_server(tmp_path, authority, "localhost")
    (tmp_path / "mqtt-ca").write_text("half a certif")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with mosquitto_running(tmp_path, options) as mosquitto:
        config = Config(
            {"main": CameraConfig("images:/")},
            mqtt=Mqtt(f"mqtts://localhost:{mosquitto.port}"),
            spool=Spool(""),
        )
        with publishers.publishing(config, Topics("edge", "t")) as publisher:
            wait_until(lambda: "cannot be used" in (publisher.state()[1].trouble or ""))
            (tmp_path / "ca.pem").rename(tmp_path / "mqtt-ca")
            wait_until(lambda: publisher.state()[1].connects == 1)
