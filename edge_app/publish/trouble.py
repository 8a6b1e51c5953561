"""What is wrong on the way to the broker, in words for the person who can put it right."""

from __future__ import annotations

import logging
import socket
import ssl
from datetime import UTC, datetime

from edge_app.publish.link import Broker

log = logging.getLogger(__name__)

_MOST_REFUSALS = 32  # that are told: whoever commands names the topics of replies

# OpenSSL's X509_V_ERR_..., which the ssl module gives as a number and an English sentence.
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST, _WRONG_IP = 9, 10, 62, 64
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)

# What a broker says of the device's own certificate. In TLS 1.3 it says so after the handshake, in
# place of its first answer.
_OF_OURS = {
    "CERTIFICATE_EXPIRED": "it has expired, or the broker's clock is wrong",
    "CERTIFICATE_REVOKED": "it was revoked",
    "UNKNOWN_CA": "the broker does not know who signed it",
    "BAD_CERTIFICATE": "it is not valid, or not yet",
    "UNSUPPORTED_CERTIFICATE": "it is not one for clients",
    "CERTIFICATE_UNKNOWN": "the broker does not say why",
    "DECRYPT_ERROR": "the key does not belong to it",
    "ACCESS_DENIED": "this device is not allowed in",
}


class Status:
    """How the connection fares, for whoever asks; the network's thread writes it.

    `trouble`: what is wrong now, None when nothing is. A failure is logged once until it changes or
    is over; a refusal, which comes again with every connection, once for each topic until the
    reason changes or a message to it is taken.
    """

    def __init__(self, broker: Broker) -> None:
        self.connects = 0
        self.trouble: str | None = None
        self._refusals: dict[str, str] = {}  # by topic
        self._where = f"broker {broker.host}:{broker.port}"

    def accepted(self) -> None:
        self.connects += 1
        self.trouble = None
        log.info("connected to %s", self._where.removeprefix("broker "))

    def cannot(self, reason: str, then: str = "trying on") -> None:
        """No message leaves at present; `then` says what is done about it."""
        self._log(reason, f"; {then}", is_known=reason == self.trouble)
        self.trouble = reason

    def refused(self, topic: str, reason: str) -> None:
        """The broker has accepted the connection, and refuses a topic on it ("": to subscribe)."""
        is_full = topic not in self._refusals and len(self._refusals) >= _MOST_REFUSALS
        self._log(reason, "", is_known=is_full or reason == self._refusals.get(topic))
        if not is_full:
            self._refusals[topic] = reason
        self.trouble = reason

    def taken(self, topic: str) -> None:
        """The broker has a message to this topic."""
        self._refusals.pop(topic, None)

    def _log(self, reason: str, then: str, *, is_known: bool) -> None:
        level = logging.DEBUG if is_known else logging.WARNING
        log.log(level, "%s: %s%s", self._where, reason, then)


def explain(error: Exception, broker: Broker) -> str:
    """Say what `error`, met before the broker accepted us, means and what to look at."""
    text = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        text = _explain_server(error, broker)
    elif isinstance(error, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError):
        speaks = "plain MQTT (mqtt://)" if broker.tls else "TLS (mqtts://)"
        text = f"it hangs up without an answer; does its port {broker.port} speak {speaks}?"
    elif isinstance(error, ssl.SSLError):
        text = _explain_tls(error, broker)
    elif isinstance(error, socket.gaierror):
        text = f"its name cannot be resolved ({error.strerror}); is the network up?"
    elif isinstance(error, TimeoutError):
        text = f"no answer; is it on, and does a firewall let port {broker.port} through?"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return text


def _explain_server(error: ssl.SSLCertVerificationError, broker: Broker) -> str:
    code, says = error.verify_code, error.verify_message
    clock = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if code == _NOT_YET_VALID:
        return (
            f"its certificate is not yet valid: this device's clock says {clock}; a Pi without a "
            "network has no clock"
        )
    if code == _EXPIRED:
        return (
            f"its certificate has expired: renew it on the broker, unless this device's clock "
            f"({clock}) is wrong"
        )
    if code in (_WRONG_HOST, _WRONG_IP):
        return (
            f"its certificate is for another name: {says}; use a name in mqtt.url that the "
            "certificate holds"
        )
    if code in _UNKNOWN_ISSUER:
        known = broker.ca_file or "the system's authorities"
        return (
            f"its certificate was not signed by one that {known} vouches for: {says}; set "
            "mqtt.ca_file to the authority of this broker"
        )
    return f"its certificate is not accepted: {says}"


def _explain_tls(error: ssl.SSLError, broker: Broker) -> str:
    reason = error.reason or ""
    if "CERTIFICATE_REQUIRED" in reason or ("HANDSHAKE_FAILURE" in reason and not broker.cert_file):
        return "it wants a certificate of this device; set mqtt.cert_file and mqtt.key_file"
    for alert, meaning in _OF_OURS.items():
        if "ALERT" in reason and reason.endswith(alert):
            return f"it refuses this device's certificate {broker.cert_file}: {meaning}"
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return f"port {broker.port} does not speak TLS; should mqtt.url begin with mqtt://?"
    return f"TLS: {reason or error}"
