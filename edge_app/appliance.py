"""The composition root of `run`: builds every part from the configuration, and takes it down.

The only module that knows all the others.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_app.camera.mailbox import Feed, Mailboxes
from edge_app.camera.opening import open_camera
from edge_app.camera.sources import is_lossless, stall_bound_s
from edge_app.catalog import ModelFiles, resolve
from edge_app.config import CameraConfig, Config, Mqtt
from edge_app.config import Spool as SpoolConfig
from edge_app.domain import Engine, Event, Label, Message, Publisher, Tensor
from edge_app.engine.failover import FailoverEngine
from edge_app.engines import open_engine
from edge_app.errors import CameraError, CameraStalled, EdgeAppError, EngineError
from edge_app.loop import Job, Loop, Prepared, preparer
from edge_app.policy import Rules
from edge_app.publish import wire
from edge_app.report import HealthReader, describe
from edge_app.sensors.clock import read_clock
from edge_app.sensors.sampler import Sampler
from edge_app.service import notify
from edge_app.service.notify import Notifier
from edge_app.stop import Stop
from edge_app.supervision import told
from edge_app.task import classify

if TYPE_CHECKING:
    from edge_app.publish.link import Broker
    from edge_app.publish.spool import Spool

log = logging.getLogger(__name__)

# How long a thread may keep the interpreter while the engine's waits for it to take its next frame.
# Python's default of 5 ms is longer than an inference; docs/performance.md has the figures.
SWITCH_INTERVAL_S = 1e-4
SHUTDOWN_S = 4.5  # to end capture and flush; goodbye and the disk get the rest of SIGTERM's 6 s
MEMORY_MAX_BYTES = 32_000_000  # of messages while the disk takes none, however large it is


def run(config: Config, asked_to_stop: Stop) -> None:
    """Be the appliance until it is asked to stop or every recording has come to its end.

    Raises EdgeAppError when a part cannot be opened or fails, or a recording was not delivered.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with ExitStack() as stack:
        files = resolve(config.model.name, config.model.labels)
        engine = open_engine(config.model, files)
        stack.callback(engine.close)
        topics = wire.Topics(config.mqtt.base, config.device.id)
        publisher = stack.enter_context(publishing(config, topics))

        def offer_info() -> None:
            info = describe(config, files, engine)
            publisher.offer(wire.info_message(topics, info, time.monotonic_ns(), read_clock()))

        def take_events() -> list[Event]:
            events = engine.events() if isinstance(engine, FailoverEngine) else []
            if events:  # another backend than before computes
                offer_info()
            return [*events, *sampler.events()]

        offer_info()
        mailboxes = open_cameras(config.camera, engine.info.input_px)
        sampler = stack.enter_context(Sampler(config.power.source))
        health = HealthReader(engine, publisher, lambda: mailboxes.counters, sampler.newest)
        job = replace(_job(config, files, engine, health), take_events=take_events)
        notifier = notify.from_environment()
        stack.callback(notifier.close)
        job = told(job, notifier, engine, publisher)
        loop = Loop(mailboxes, engine, publisher, topics, job)

        def stop() -> None:
            loop.stop()
            mailboxes.wake()

        asked_to_stop.answer_with(stop)
        _serve(loop, mailboxes, publisher, topics, notifier)
        lost = publisher.state()[0].dropped
        if lost and not any(camera.loop for camera in config.camera.values()):
            raise EdgeAppError(f"{lost} messages were lost", hint="the log says why, further up")


def _serve(
    loop: Loop,
    mailboxes: Mailboxes[Prepared],
    publisher: Publisher,
    topics: wire.Topics,
    notifier: Notifier,
) -> None:
    """Run the loop; whatever ends it, stop capture first and then flush, within a bound."""
    ended_s = 0.0
    try:
        with mailboxes:
            try:
                loop.run()
            finally:
                ended_s = time.monotonic()
                notifier.stopping("ending: what is left goes to the broker, or to the disk")
    except (CameraError, EngineError) as error:
        message = wire.event_message(topics, _event(error), time.monotonic_ns(), read_clock())
        publisher.offer(message)
        raise
    finally:
        if not publisher.drain(ended_s + SHUTDOWN_S - time.monotonic()):
            waiting = publisher.state()[0].queued
            log.warning("%d messages were not delivered before the end", waiting)


def _event(error: CameraError | EngineError) -> Event:
    if isinstance(error, CameraStalled):
        return Event("camera_stalled", str(error))
    return Event("camera_failed" if isinstance(error, CameraError) else "engine_failed", str(error))


@contextmanager
def publishing(config: Config, topics: wire.Topics) -> Iterator[Publisher]:
    """Connect to the configured broker, or write JSON lines to stdout when there is none.

    When the block ends, what the broker does not have goes to the disk.
    """
    if not config.mqtt.url:
        from edge_app.publish.jsonl import JsonLinesPublisher

        with closing(JsonLinesPublisher(sys.stdout.buffer)) as lines:
            yield lines
        return
    from edge_app.publish.link import tls_context
    from edge_app.publish.mqtt import MqttPublisher

    broker = broker_of(config.mqtt, client_id=f"edge-app-{config.device.id}")
    if broker.tls:
        tls_context(broker)  # unusable certificates are the user's fault: say so now
    with spooling(config.spool, topics) as spool:
        publisher = MqttPublisher(
            broker,
            spool,
            online=wire.status_message(topics, online=True),
            offline=wire.status_message(topics, online=False),
        )
        try:
            yield publisher
        finally:
            publisher.close()


@contextmanager
def spooling(config: SpoolConfig, topics: wire.Topics) -> Iterator[Spool]:
    """Make the configured spool: in memory, and on a disk unless its path is empty."""
    from edge_app.publish.keeper import Keeper
    from edge_app.publish.spool import Spool

    def as_message(event: Event) -> Message:
        return wire.event_message(topics, event, time.monotonic_ns(), read_clock())

    max_bytes = config.max_mb * 1_000_000
    if not config.path:
        yield Spool(max_bytes, as_message)
        return
    spool = Spool(min(max_bytes, MEMORY_MAX_BYTES), as_message)
    keeper = Keeper(spool, spool_path(config.path), max_bytes)
    try:
        yield spool
    finally:
        keeper.close()


def spool_path(configured: str) -> Path:
    """Return where the spool is: systemd's state directory stands for the default's folder."""
    state_dir = os.environ.get("STATE_DIRECTORY", "")
    if configured == SpoolConfig().path and state_dir:
        return Path(state_dir) / Path(configured).name
    return Path(configured)


def broker_of(mqtt: Mqtt, client_id: str) -> Broker:
    """Return where the configured broker is and how to be let in."""
    from edge_app.publish.link import Broker, read_password

    url = urlsplit(mqtt.url)
    return Broker(
        host=url.hostname or "",
        port=url.port or (8883 if url.scheme == "mqtts" else 1883),
        client_id=client_id,
        tls=url.scheme == "mqtts",
        username=mqtt.username,
        password=read_password(mqtt.password_file),
        ca_file=mqtt.ca_file,
        cert_file=mqtt.cert_file,
        key_file=mqtt.key_file,
        only_3_1_1=mqtt.version == "3.1.1",
    )


def open_cameras(
    cameras: Mapping[str, CameraConfig], input_px: tuple[int, int]
) -> Mailboxes[Prepared]:
    """Make every configured camera and its capture thread; they start on `with`."""
    feeds = {
        name: Feed(
            open_camera(
                name,
                camera.source,
                size_px=camera.size_px,
                fps=camera.fps,
                loop=camera.loop,
                cover_px=input_px,
            ),
            lossless=is_lossless(camera.source, fps=camera.fps, loop=camera.loop),
            stall_s=stall_bound_s(camera.fps),
        )
        for name, camera in cameras.items()
    }
    crops = {name: camera.crop for name, camera in cameras.items()}
    return Mailboxes(feeds, preparer(input_px, crops))


def _job(config: Config, files: ModelFiles, engine: Engine, health: HealthReader) -> Job:
    spec = engine.info.outputs[0]
    labels = classify.fit_labels(files.labels, spec.shape[-1]) if files.labels else ()
    # The policy smooths over labels below the threshold too, and over more than may be shown.
    considered = max(config.model.top_k, 5)

    def decode(outputs: list[Tensor]) -> tuple[Label, ...]:
        return classify.decode(classify.scores(outputs[0], spec), labels, considered, 0.0)

    return Job(
        task="classify",
        model=engine.info.model,
        top_k=config.model.top_k,
        rules=Rules(
            mode=config.publish.mode,
            threshold=config.model.threshold,
            heartbeat_s=config.publish.heartbeat_s,
            smoothing_s=config.publish.smoothing_s,
            hysteresis=config.publish.hysteresis,
            min_interval_s=config.publish.min_interval_s,
        ),
        decode=decode,
        read_clock=read_clock,
        read_health=health.read,
        stats_every_s=config.stats.interval_s,
    )
