"""The composition root of `run`: builds every part from the configuration, and takes it down.

With `cameras`, `engines` and `publishers`, the only modules that know all the others.
"""

from __future__ import annotations

import logging
import queue
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from edge_app import policy
from edge_app.announce import Announcer, memory_of
from edge_app.camera.sources import is_lossless, stall_bound_s
from edge_app.cameras import open_cameras
from edge_app.catalog import resolve
from edge_app.config import Config
from edge_app.control import Panel, Parts, Reception
from edge_app.desk import Desk
from edge_app.domain import Event, Frame, Label, Performance
from edge_app.engine.failover import FailoverEngine
from edge_app.engine.survey import Survey, survey
from edge_app.engines import edgetpu_starter, open_engine
from edge_app.errands import Errands
from edge_app.errors import CameraError, EdgeAppError, EngineError, ModelError
from edge_app.inference import Inbox
from edge_app.job import job_of, settings_of
from edge_app.loop import Loop
from edge_app.publish import wire
from edge_app.publish.discovery import BIRTH_TOPIC
from edge_app.publishers import claiming, publishing
from edge_app.recorder import Recorder, place_of_copy
from edge_app.reload import Reloader
from edge_app.report import HealthReader, describe
from edge_app.selftest import Subjects, run_selftest
from edge_app.sensors.clock import read_clock
from edge_app.sensors.sampler import Sampler
from edge_app.service import notify
from edge_app.service.plea import Plea
from edge_app.settings import Gate, Settings
from edge_app.stop import Stop
from edge_app.supervision import told, usb_plea
from edge_app.task.image import fit
from edge_app.telemetry import Window

log = logging.getLogger(__name__)

# How long a thread may keep the interpreter while the engine's waits for it to take its next frame.
# Python's default of 5 ms is longer than an inference; docs/performance.md has the figures.
SWITCH_INTERVAL_S = 1e-4
UNCLEAN_END = (
    "the process before this one was killed or crashed; the log has its last minute "
    "(flight recorder)"
)
SHUTDOWN_S = 4.5  # to end capture and flush; goodbye and the disk get the rest of SIGTERM's 6 s


def run(
    config: Config, asked_to_stop: Stop, read_again: Callable[[], Config] | None = None
) -> None:
    """Be the appliance until it is asked to stop or every recording has come to its end.

    `read_again` returns the configuration as it is at SIGHUP, or raises ConfigError. Raises
    EdgeAppError when a part cannot be opened or fails, or a recording was not delivered.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    plea = usb_plea()
    try:
        with ExitStack() as stack:
            Appliance(config, plea, stack).run(asked_to_stop, read_again or (lambda: config))
    except EngineError as error:
        if config.model.backend == "edgetpu" and not isinstance(error, ModelError):
            plea.ask()  # required and away: we end before it would be time to
        raise


class Appliance:
    """All parts, and what goes on between them. `stack` closes what is opened here."""

    def __init__(self, config: Config, plea: Plea, stack: ExitStack) -> None:
        self._config = config
        self._plea = plea
        self._happened: list[Event] = []
        # First: beside another appliance on the same files nothing may be touched.
        claim = stack.enter_context(claiming(config))
        self._recorder = Recorder(place_of_copy())
        self._files = resolve(config.model.name, config.model.labels)
        self._engine = open_engine(config.model, self._files)
        stack.callback(self._engine.close)
        self._settings = settings_of(config, self._engine)
        self._survey: Survey | None = None
        self._topics = topics = wire.Topics(config.mqtt.base, config.device.id)
        self._inbox: Inbox = queue.SimpleQueue()
        births = [BIRTH_TOPIC] if config.mqtt.discovery_prefix else []
        self._publisher = stack.enter_context(
            publishing(
                config,
                topics,
                claim=claim,
                subscriptions=[f"{topics.commands}+", *births],
                on_received=lambda: self._inbox.put(self._take_in),
                on_event=self._recorder.add_event,
            )
        )
        # Not before it can be told: a start that fails above leaves the copy to the next one.
        if self._recorder.recover():
            self._tell(Event("unclean_end", UNCLEAN_END))
        stack.callback(self._recorder.close)
        self._say_info(self._settings)
        self._gate = Gate()
        self._mailboxes = open_cameras(config.camera, self._engine.info.input_px, self._gate.wait_s)
        self._sampler = stack.enter_context(Sampler(config.power.source))
        self._notifier = notify.from_environment()
        stack.callback(self._notifier.close)
        memory = memory_of(config) if claim is not None and claim.held else None
        self._announcer = Announcer(config, topics, self._publisher.offer, self._say_later, memory)
        self._loop = self._make_loop()
        self._announcer.start()
        self._errands = stack.enter_context(Errands())
        if isinstance(self._engine, FailoverEngine):
            self._errands.add(self._look_for_edgetpus)
        self._panel = Panel(self._parts(), self._settings, topics, self._publisher)
        # Below these nobody but the appliances themselves, and who commands them, has a say.
        trees = [f"{config.mqtt.base}/", f"{config.mqtt.base}-cmd/"]
        trees += [f"{config.mqtt.discovery_prefix}/"] if births else []
        self._desk = Desk(self._panel, topics.commands, topics.reply, trees)
        self._reception = Reception(
            self._publisher,
            topics,
            desk=self._desk,
            loop=self._loop,
            errands=self._errands,
            announce=self._announce,
        )

    def run(self, asked_to_stop: Stop, read_again: Callable[[], Config]) -> None:
        """Serve frames; see `run` above."""
        reloader = Reloader(
            self._config,
            read_again,
            self._loop,
            self._panel,
            self._notifier,
            tell=self._happened.append,
        )
        asked_to_stop.reload_with(lambda: self._inbox.put(reloader.reload))
        asked_to_stop.answer_with(self._loop.stop)
        asked_to_stop.dump_with(lambda: self._inbox.put(lambda: self._recorder.write("SIGUSR1")))
        self._serve()
        lost = self._publisher.state()[0].dropped
        if lost and not any(camera.loop for camera in self._config.camera.values()):
            raise EdgeAppError(f"{lost} messages were lost", hint="the log says why, further up")

    def _serve(self) -> None:
        """Run the loop; whatever ends it, stop capture first and then flush, within a bound."""
        ended_s = 0.0
        try:
            with self._mailboxes:
                try:
                    self._loop.run()
                finally:
                    ended_s = time.monotonic()
                    self._notifier.stopping("ending: what is left goes to the broker or the disk")
        except BaseException as error:
            self._tell_end(error)
            raise
        finally:
            left_s = ended_s + SHUTDOWN_S - time.monotonic()
            if not self._publisher.drain(left_s, or_saved=True):
                waiting = self._publisher.state()[0].queued
                log.warning("%d messages were not delivered before the end", waiting)

    def _tell_end(self, error: BaseException) -> None:
        """Leave word of why it ends: an event, if somebody can do something, and the record."""
        if isinstance(error, (CameraError, EngineError)):
            camera = {"camera": error.camera} if error.camera else {}
            self._tell(Event(error.kind, str(error), camera))
        self._recorder.write(f"{type(error).__name__}: {error}")

    def _tell(self, event: Event) -> None:
        """Publish an event while the loop does not do it."""
        self._recorder.add_event(event)
        message = wire.event_message(self._topics, event, time.monotonic_ns(), read_clock())
        self._publisher.offer(message)

    def _make_loop(self) -> Loop:
        seconds, health = self._health_reader(), self._health_reader()
        recorder = self._recorder

        def each_second(window: Window, now_ns: int) -> None:
            recorder.add_second(seconds.read(window, now_ns), now_ns)
            if self._loop.inference.idle:  # paused, or a slow camera's; who hangs is not idle
                self._notifier.progressed()

        job = job_of(self._config, self._files, self._engine, health)
        self._decode = job.decode
        job = replace(job, take_events=self._take_events, each_second=each_second)
        job = told(job, self._notifier, self._plea, self._engine, self._publisher)
        job = replace(job, read_health=self._announcer.hearing(job.read_health))
        return Loop(
            self._mailboxes, self._engine, self._publisher, self._topics, job, inbox=self._inbox
        )

    def _health_reader(self) -> HealthReader:
        return HealthReader(
            self._engine,
            self._publisher,
            lambda: self._mailboxes.counters,
            self._sampler.newest,
        )

    def _parts(self) -> Parts:
        """Return what commands act on."""
        subjects = Subjects(
            model=self._config.model,
            files=self._files,
            info=self._engine.info,
            newest_frames=self._mailboxes.newest,
            live_s={
                name: stall_bound_s(camera.fps)
                for name, camera in self._config.camera.items()
                if not is_lossless(camera.source, fps=camera.fps, loop=camera.loop)
            },
            try_out=self._loop.inference.try_out,
            newest_sample=self._sampler.fresh,
            power_source=self._config.power.source,
        )
        return Parts(
            loop=self._loop,
            gate=self._gate,
            recorder=self._recorder,
            newest_frames=self._mailboxes.newest,
            look_at=self._look_at,
            selftest=lambda: run_selftest(subjects, self._errands.stopping),
            reopen=self._reopen if isinstance(self._engine, FailoverEngine) else None,
            settings_changed=self._say_info,
            restart=self._loop.stop,
        )

    def _look_at(self, frame: Frame) -> tuple[Label, ...]:
        """Say what one frame shows, as a result would. For any thread but the loop's."""
        crop = self._config.camera[frame.camera].crop
        trial = self._loop.inference.try_out(
            fit(frame.pixels, self._engine.info.input_px, crop).pixels
        )
        labels = self._decode(trial.outputs, self._loop.rules.top_k)
        return policy.shown(self._loop.rules, labels)

    def _look_for_edgetpus(self) -> None:
        """Find out what there is of libedgetpu and pycoral, which takes a process and a while."""
        found = survey()

        def tell() -> None:
            self._survey = found
            self._say_info(self._settings)

        self._loop.call_soon(tell)

    # What follows runs in the loop's thread.

    def _take_in(self) -> None:
        self._reception.take_in()

    def _take_events(self) -> list[Event]:
        engine = self._engine
        events = engine.events() if isinstance(engine, FailoverEngine) else []
        if self._engine.info.backend != self._backend_told:
            self._say_info(self._settings)
        refused = self._desk.events(time.monotonic())
        for event in refused:
            log.warning("%s", event.message, extra=event.fields())
        events += [*self._happened, *self._sampler.events(), *refused]
        self._happened.clear()
        for event in events:
            self._recorder.add_event(event)
        return events

    def _say_info(self, settings: Settings) -> None:
        self._settings = settings
        self._backend_told = self._engine.info.backend
        info = describe(self._config, self._files, self._engine, settings, self._survey)
        message = wire.info_message(self._topics, info, time.monotonic_ns(), read_clock())
        self._publisher.offer(message)

    def _announce(self) -> None:
        """Say again what somebody who has just started cannot know."""
        self._announcer.announce()
        self._say_info(self._settings)
        self._loop.repeat()

    def _say_later(self, delay_s: float) -> None:
        self._loop.call_later(delay_s, self._loop.repeat)

    def _reopen(self, performance: Performance) -> None:
        if isinstance(self._engine, FailoverEngine):
            self._engine.reopen(edgetpu_starter(self._config.model, self._files, performance))
