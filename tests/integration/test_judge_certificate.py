"""When a device's certificate is replaced: the script that provisioning runs on it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

_SCRIPT = (
    Path(__file__).parents[2] / "provisioning/roles/certificate/files/judge-certificate"
).read_text()
_NOW = datetime.now(UTC).replace(microsecond=0)
_DAY = timedelta(days=1)


@dataclass
class Authority:
    """One with a list of what it revoked."""

    ca: trustme.CA = field(default_factory=lambda: trustme.CA(key_type=trustme.KeyType.ECDSA))
    revoked: list[int] = field(default_factory=list)

    def issue(self, folder: Path, name: str = "cam-1", address: str = "10.0.0.1") -> int:
        """Write a certificate for a hundred days and its key; returns its serial number."""
        made = self.ca.issue_cert(
            address,
            common_name=name,
            not_after=_NOW + 100 * _DAY,
            key_type=trustme.KeyType.ECDSA,
        )
        made.cert_chain_pems[0].write_to_path(str(folder / "client.crt"))
        made.private_key_pem.write_to_path(str(folder / "client.key"))
        return x509.load_pem_x509_certificate(made.cert_chain_pems[0].bytes()).serial_number

    def text(self) -> str:
        """Return its certificate and its list."""
        own = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        key = load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        records = x509.CertificateRevocationListBuilder(own.subject, _NOW - _DAY, _NOW + _DAY)
        for serial in self.revoked:
            record = x509.RevokedCertificateBuilder(serial, _NOW - _DAY).build()
            records = records.add_revoked_certificate(record)
        signed = records.sign(key, hashes.SHA256())  # type: ignore[arg-type]
        return self.ca.cert_pem.bytes().decode() + signed.public_bytes(Encoding.PEM).decode()


def judged(
    folder: Path,
    authority: Authority,
    name: str = "cam-1",
    renew_days: int = 60,
    addresses: str = "IP:10.0.0.1",
) -> str:
    """Return why the certificate in `folder` needs replacing; empty when it does not."""
    command = ["sh", "-c", _SCRIPT, "judge-certificate"]
    command += [str(folder), "client", name, str(renew_days), addresses]
    done = subprocess.run(
        command, input=authority.text(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture
def authority() -> Authority:
    return Authority()


def test_a_good_one_stays(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path)
    assert judged(tmp_path, authority) == ""
    assert judged(tmp_path, authority, renew_days=99) == ""


def test_one_that_ends_soon(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path)
    assert judged(tmp_path, authority, renew_days=101) == "ends within 101 days"


def test_none(tmp_path: Path, authority: Authority) -> None:
    assert judged(tmp_path, authority) == "absent"
    assert judged(tmp_path / "nowhere", authority) == "absent"
    authority.issue(tmp_path)
    (tmp_path / "client.key").unlink()
    assert judged(tmp_path, authority) == "absent"


def test_one_cut_off_by_a_full_disk(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path)
    (tmp_path / "client.crt").write_text("-----BEGIN CERTIFICATE-----\nMIIB")
    assert judged(tmp_path, authority) == "not for cam-1"


def test_one_of_another_name_or_address(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path)
    assert judged(tmp_path, authority, name="cam-2") == "not for cam-2"
    assert judged(tmp_path, authority, addresses="") == "for IP:10.0.0.1, not none"


def test_one_of_another_key(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path)
    ours = (tmp_path / "client.key").read_bytes()
    authority.issue(tmp_path)
    (tmp_path / "client.key").write_bytes(ours)
    assert judged(tmp_path, authority) == "not for the key"


def test_one_of_another_authority(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path)
    assert judged(tmp_path, Authority()).startswith("refused: error ")


def test_a_revoked_one(tmp_path: Path, authority: Authority) -> None:
    authority.revoked.append(authority.issue(tmp_path))
    assert "certificate revoked" in judged(tmp_path, authority)
