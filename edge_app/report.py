"""What the appliance says about itself: its state every window, and what it is, once."""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from edge_app import __version__
from edge_app.camera.mailbox import Counters
from edge_app.camera.sources import redacted
from edge_app.catalog import ModelFiles
from edge_app.config import Config
from edge_app.domain import Engine, Publisher
from edge_app.engine.devices import attached
from edge_app.engine.failover import FailoverEngine
from edge_app.engine.survey import Survey
from edge_app.sensors.energy import PowerReport
from edge_app.sensors.process import ProcessMeter
from edge_app.sensors.sampler import Sample
from edge_app.settings import Settings
from edge_app.stats import Accelerator, Frames, Health, Rates
from edge_app.telemetry import Window


class HealthReader:
    """Turns counters since the start into a report on one window."""

    def __init__(
        self,
        engine: Engine,
        publisher: Publisher,
        counters: Callable[[], Mapping[str, Counters]],
        sample: Callable[[int], Sample],
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._counters = counters
        self._sample = sample
        self._power = PowerReport()
        self._process = ProcessMeter()
        self._before = Counters()

    def read(self, window: Window, now_ns: int) -> Health:
        """Report on `window`, which ends at `now_ns`. What nothing measures is None."""
        each = self._counters().values()
        total = Counters(
            captured=sum(counters.captured for counters in each),
            dropped=sum(counters.dropped for counters in each),
            corrupt=sum(counters.corrupt for counters in each),
            gated=sum(counters.gated for counters in each),
        )
        before, self._before = self._before, total
        engine = self._engine
        window_s = (now_ns - window.started_ns) / 1e9
        frames = Frames(
            captured=total.captured - before.captured,
            inferred=window.inferred,
            dropped=total.dropped - before.dropped,
            gated=total.gated - before.gated,
            corrupt=total.corrupt - before.corrupt,
        )
        sample = self._sample(now_ns)
        spool, mqtt = self._publisher.state()
        return Health(
            window_s=window_s,
            backend=engine.info.backend,
            fps=Rates(
                captured=round(frames.captured / window_s, 2),
                inferred=round(window.inferred / window_s, 2),
                published=round(window.published / window_s, 2),
            ),
            frames=frames,
            latency_ms=window.latency_ms(),
            power=self._power.read(sample.energy, window_s, window.inferred),
            thermal_c=sample.thermal,
            throttled=sample.throttled,
            accelerator=engine.accelerator()
            if isinstance(engine, FailoverEngine)
            else Accelerator(),
            process=self._process.read(),
            spool=spool,
            mqtt=mqtt,
        )


class Info(msgspec.Struct):
    """What this device is; the payload of the info topic, after its stamp.

    `device`: `id`, `area`, host name and machine. `versions`: of this program, Python and the
    interpreter of models. `boot_id`: the kernel's, another one after every boot. `backend`: what
    computes now. `model`: its name, input, classes, and what its passport says. `cameras`: each
    one's source, rate and crop. `settings`: those in effect, which commands may have changed.
    """

    device: dict[str, str]
    versions: dict[str, str]
    boot_id: str
    backend: str
    model: dict[str, object]
    cameras: dict[str, dict[str, object]]
    settings: Settings
    edgetpu: Survey | None


def describe(
    config: Config,
    files: ModelFiles,
    engine: Engine,
    settings: Settings,
    survey: Survey | None = None,
) -> Info:
    """Say what this appliance is, and which `settings` are in effect.

    `survey`: what it has for an Edge TPU; which are attached is looked up again.
    """
    return Info(
        device={
            "id": config.device.id,
            "area": config.device.area,
            "host": socket.gethostname(),
            "machine": platform.machine(),
        },
        versions={
            "edge_app": __version__,
            "python": platform.python_version(),
            "runtime": engine.info.runtime,
        },
        boot_id=_boot_id(),
        backend=engine.info.backend,
        model=_model(files, engine),
        cameras={
            name: {"source": redacted(camera.source), "fps": camera.fps, "crop": camera.crop}
            for name, camera in config.camera.items()
        },
        settings=settings,
        edgetpu=None if survey is None else replace(survey, attached=attached()),
    )


def _model(files: ModelFiles, engine: Engine) -> dict[str, object]:
    known: dict[str, object] = {
        "name": files.name,
        "input_px": engine.info.input_px,
        "classes": engine.info.outputs[0].shape[-1],
    }
    if files.passport is not None:
        known |= {
            "architecture": files.passport.architecture,
            "licence": files.passport.licence,
            "macs": files.passport.macs,
            "params": files.passport.params,
            "sha256": files.passport.cpu.sha256,
        }
    return known


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
