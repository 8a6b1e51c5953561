"""What the supervisor is told of the appliance's work: that it goes on, and how."""

from __future__ import annotations

import os
from dataclasses import replace

from edge_app.domain import Engine, Label, Publisher, Tensor
from edge_app.engine.devices import attached
from edge_app.files import runtime_folder
from edge_app.loop import Job
from edge_app.service.notify import Notifier
from edge_app.service.plea import Plea
from edge_app.stats import Health, MqttState, SpoolState
from edge_app.telemetry import Window


def told(job: Job, notifier: Notifier, plea: Plea, engine: Engine, publisher: Publisher) -> Job:
    """Return the job, of which `notifier` and `plea` hear: each completed step, and each report."""

    def decode(outputs: list[Tensor], count: int) -> tuple[Label, ...]:
        labels = job.decode(outputs, count)
        notifier.completed(lambda: f"{engine.info.backend}; {broker_line(*publisher.state())}")
        return labels

    def read_health(window: Window, now_ns: int) -> Health:
        health = job.read_health(window, now_ns)
        notifier.status(status_line(health))
        if health.accelerator.state != "none":
            plea.see(serves=health.accelerator.cause is None)
        return health

    return replace(job, decode=decode, read_health=read_health)


def usb_plea() -> Plea:
    """Return what asks for a reset of a Coral's port, if this is the service and there is one."""

    def is_attached() -> bool:
        return any(tpu.bus == "usb" and tpu.usable for tpu in attached())

    return Plea(runtime_folder(os.environ), is_attached)


def status_line(health: Health) -> str:
    """Return what `systemctl status` shows: backend, frames a second, p95 from end to end, broker.

    Example: "edgetpu; 29.9 fps, p95 18.2 ms; broker: connected".
    """
    end_to_end = health.latency_ms.get("end_to_end")
    p95 = f", p95 {end_to_end.p95:.1f} ms" if end_to_end else ""
    accelerator = health.accelerator
    away = f" (accelerator {accelerator.state})" if accelerator.cause else ""
    pace = f"{health.fps.inferred:.1f} fps{p95}"
    return f"{health.backend}{away}; {pace}; {broker_line(health.spool, health.mqtt)}"


def broker_line(spool: SpoolState, mqtt: MqttState) -> str:
    """Return how the connection fares, and what waits for it."""
    again = f" for the {mqtt.connects}. time" if mqtt.connects > 1 else ""
    state = f"connected{again}" if mqtt.connects else "connecting"
    waiting = f", {spool.queued} messages wait" if spool.queued else ""
    return f"broker: {mqtt.trouble or state}{waiting}"
