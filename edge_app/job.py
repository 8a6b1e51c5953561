"""What the configuration and the model make of the frames: the loop's job, and what can be set."""

from __future__ import annotations

from edge_app.catalog import ModelFiles
from edge_app.config import Config
from edge_app.domain import Engine, Label, Tensor
from edge_app.engine.failover import FailoverEngine
from edge_app.loop import Job
from edge_app.policy import Rules
from edge_app.report import HealthReader
from edge_app.sensors.clock import read_clock
from edge_app.settings import Settings
from edge_app.task import classify


def settings_of(config: Config, engine: Engine) -> Settings:
    """Return the configured values of what commands can change."""
    has_edgetpu = isinstance(engine, FailoverEngine)
    return Settings(
        threshold=config.model.threshold,
        top_k=config.model.top_k,
        mode=config.publish.mode,
        performance=config.model.performance if has_edgetpu else None,
    )


def job_of(config: Config, files: ModelFiles, engine: Engine, health: HealthReader) -> Job:
    """Return what to make of the frames. Raises ModelError when the labels do not fit."""
    spec = engine.info.outputs[0]
    labels = classify.fit_labels(files.labels, spec.shape[-1]) if files.labels else ()

    def decode(outputs: list[Tensor], count: int) -> tuple[Label, ...]:
        return classify.decode(classify.scores(outputs[0], spec), labels, count, 0.0)

    return Job(
        task="classify",
        model=engine.info.model,
        rules=rules_of(config),
        decode=decode,
        read_clock=read_clock,
        read_health=health.read,
        stats_every_s=config.stats.interval_s,
    )


def rules_of(config: Config) -> Rules:
    """Return when to publish, as configured."""
    return Rules(
        mode=config.publish.mode,
        threshold=config.model.threshold,
        top_k=config.model.top_k,
        heartbeat_s=config.publish.heartbeat_s,
        smoothing_s=config.publish.smoothing_s,
        hysteresis=config.publish.hysteresis,
        min_interval_s=config.publish.min_interval_s,
    )
