"""What is wrong with how a configuration reaches its broker: each fault with its key."""

from __future__ import annotations

import re
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from edge_app.config_files import MAX_BYTES
from edge_app.errors import Unreadable
from edge_app.files import read_text
from edge_app.validate import shown


def address_faults(address: str, *, certificates: bool) -> Iterator[str]:
    """Yield what is wrong with `mqtt.url`. `certificates`: some are set, which need TLS."""
    try:
        url = urlsplit(address)
        known = url.scheme in ("mqtt", "mqtts") and bool(url.hostname) and url.port != 0
        bare = not (url.path.strip("/") or url.query or url.fragment)
    except ValueError:  # a port that is no number up to 65535, an unclosed bracket
        known = bare = False
    if not known or not bare:
        allowed = "mqtt://HOST[:PORT] or mqtts://HOST[:PORT], nothing after it"
        yield f"mqtt.url: found {shown(_hide_password(address))}; allowed: {allowed}"
    if known and (url.username or url.password):
        yield "mqtt.url: holds a user name or password; use mqtt.username and mqtt.password_file"
    if known and url.scheme == "mqtt" and certificates:
        yield "mqtt.url: certificates are set but mqtt:// does not encrypt; use mqtts://"


def _hide_password(url: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:***@", url)


def tree_faults(base: str, discovery_prefix: str) -> Iterator[str]:
    """Yield whether states and commands would share their topics with announcements."""
    announced = f"{discovery_prefix}/" if discovery_prefix else ""
    for tree in (f"{base}/", f"{base}-cmd/") if announced else ():
        if tree.startswith(announced) or announced.startswith(tree):
            yield (
                f"mqtt.base: found {shown(base)}, and mqtt.discovery_prefix "
                f"{shown(discovery_prefix)}; allowed: trees of topics apart from each other"
            )
            return


def password_faults(file: str) -> Iterator[str]:
    """Yield what is wrong with a password file that can be read."""
    try:
        is_empty = not read_text(Path(file), MAX_BYTES).strip("\r\n")
    except Unreadable as error:
        yield f"mqtt.password_file: found {shown(file)}: {error}; allowed: text in UTF-8"
        return
    if is_empty:
        yield f"mqtt.password_file: found {shown(file)}: empty; allowed: the password alone"
    if Path(file).stat().st_mode & stat.S_IRWXO:
        yield (
            f"mqtt.password_file: {file} can be read by other users; "
            f"allowed: no access for others (chmod o= {file})"
        )


def certificate_faults(ca_file: str, cert_file: str, key_file: str) -> Iterator[str]:
    """Yield what is wrong with certificates and a key that can be read; empty ones are skipped."""
    sound = True
    for key, file in (("mqtt.ca_file", ca_file), ("mqtt.cert_file", cert_file)):
        if file and not _holds_certificate(file):
            sound = False
            yield (
                f"{key}: found {shown(file)}: no certificate is in it, or a damaged one; allowed: "
                "PEM (-----BEGIN CERTIFICATE-----)"
            )
    if sound and cert_file and key_file and (fault := _key_fault(cert_file, key_file)):
        yield f"mqtt.key_file: found {shown(key_file)}: {fault}"


def _holds_certificate(file: str) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=file)
    except (OSError, ssl.SSLError):
        return False
    return bool(context.cert_store_stats()["x509"])


def _key_fault(cert_file: str, key_file: str) -> str:
    asked = []

    def no_passphrase() -> str:  # without this OpenSSL would ask whoever sits at the terminal
        asked.append(True)
        return ""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(cert_file, key_file, no_passphrase)
    except (OSError, ssl.SSLError) as error:
        if asked:
            return (
                "protected by a passphrase, which nobody is there to type; allowed: a key without "
                "one (openssl pkey -in PROTECTED -out KEY), readable by the appliance alone"
            )
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            return f"it does not belong to {cert_file}; allowed: the key of that certificate"
        return "no private key is in it, or a damaged one; allowed: PEM (-----BEGIN PRIVATE KEY---)"
    return ""
