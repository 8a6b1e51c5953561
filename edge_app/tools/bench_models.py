"""`edge-app bench --models`: measured latency against multiply-adds, on this very machine.

Howard et al. 2017 size networks by their multiply-adds; whether latency follows them depends on
the processor. All models are measured in one run, in turn (A B C A B C ...), so that heat, clock
changes and other programs touch them alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge_app.domain import Engine, Pixels
from edge_app.errors import EXIT_OK, ModelError, UsageError
from edge_app.sensors.energy import EnergyMeter
from edge_app.sensors.power import PowerSensor
from edge_app.tools import plot as pictures
from edge_app.tools.bench_openers import EngineOpener
from edge_app.tools.bench_openers import openers as openers_of
from edge_app.tools.cost import cost_of
from edge_app.tools.targets import find_target
from edge_app.tools.tflite_reader import read_graph

ROUNDS = 20
# Long enough that a power meter that ticks every millisecond sees each turn.
_TURN_MS = 50.0
_MAX_RUNS_A_TURN = 200
_WARM_UP_RUNS = 3


@dataclass(slots=True)
class _Runner:
    """One model on one backend, and what was measured so far."""

    model: str
    macs: int
    random: bool
    engine: Engine
    pixels: Pixels
    runs_a_turn: int = 1
    latencies_ms: list[float] = field(default_factory=list)
    energies_mj: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on one backend. `energy_mj`: per inference, None when nothing measures it."""

    model: str
    backend: str
    runtime: str
    threads: int
    random_weights: bool
    macs: int
    runs: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    energy_mj: float | None


@dataclass(frozen=True, slots=True)
class Fit:
    """Least squares: `latency_ms = intercept_ms + ms_per_million_macs * macs / 1e6`.

    `r_squared`: the share of the medians' variance that multiply-adds explain. Through two points
    every line is perfect, so it is None for fewer than three.
    """

    intercept_ms: float
    ms_per_million_macs: float
    r_squared: float | None


def bench_models(
    targets: Sequence[str],
    *,
    plot: Path | None = None,
    as_json: bool = False,
    threads: int = 1,
    rounds: int = ROUNDS,
    openers: Mapping[str, EngineOpener] | None = None,
    read_energy_j: Callable[[], float | None] | None = None,
) -> int:
    """Measure `targets` (paths, installed models, architecture names) and print; return exit code.

    `openers`: by backend; those of `bench_openers` when None. `read_energy_j`: a counter of the
    energy the machine has used, in joules; the machine's own power source when None. Raises
    ModelError, EngineError, UsageError.
    """
    if not targets or rounds < 1:
        raise UsageError("no models to measure", hint="--models a,b,c")
    if plot is not None:
        pictures.check_plot(plot)
    openers = openers or openers_of(threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="edge-app-bench-")))
        runners = _open_all(targets, openers, folder, stack)
        _measure(runners, rounds, read_energy_j or energy_counter(PowerSensor("auto")))
        results = [_summary(runner) for runner in runners]
    backends = dict.fromkeys(result.backend for result in results)
    by_backend = {name: [r for r in results if r.backend == name] for name in backends}
    fits = {name: fit for name, of in by_backend.items() if (fit := fit_line(of)) is not None}
    if plot is not None:
        _draw(by_backend, fits, plot)
    if as_json:
        record = {
            "models": [asdict(result) for result in results],
            "fits": {name: asdict(fit) for name, fit in fits.items()},
        }
        print(json.dumps(record, indent=1))
    else:
        _show(results, fits, Console())
    return EXIT_OK


def fit_line(results: Sequence[Measured]) -> Fit | None:
    """The line through the medians; None when all have the same multiply-adds."""
    macs = np.array([result.macs / 1e6 for result in results])
    latency_ms = np.array([result.median_ms for result in results])
    if len(set(macs.tolist())) < 2:
        return None
    slope, intercept = np.polyfit(macs, latency_ms, 1)
    rest = float(((latency_ms - intercept - slope * macs) ** 2).sum())
    spread = float(((latency_ms - latency_ms.mean()) ** 2).sum())
    r_squared = 1 - rest / spread if len(results) > 2 and spread > 0 else None
    return Fit(float(intercept), float(slope), r_squared)


def _open_all(
    targets: Sequence[str], openers: Mapping[str, EngineOpener], folder: Path, stack: ExitStack
) -> list[_Runner]:
    runners = []
    for name in dict.fromkeys(targets):
        target = find_target(name)
        path = target.path
        if path is None:
            from edge_app.models.builder.build import build_random

            path = folder / f"{name}.tflite"
            path.write_bytes(build_random(name))
        graph = read_graph(path)
        if graph.compiled:
            raise ModelError(
                f"{path}: compiled for the Edge TPU, which hides its multiply-adds",
                hint="name the CPU twin: the same file name without _edgetpu",
            )
        macs = cost_of(graph).total.macs
        for opener in openers.values():
            if (engine := opener(path, target.name)) is not None:
                stack.callback(engine.close)
                random = target.path is None
                runners.append(_Runner(target.name, macs, random, engine, _pixels(engine)))
    return runners


def _pixels(engine: Engine) -> Pixels:
    """Noise: what the picture shows does not change how long it takes."""
    width_px, height_px = engine.info.input_px
    noise = np.random.default_rng(0)
    return noise.integers(0, 256, (height_px, width_px, 3), np.uint8)


def energy_counter(sensor: PowerSensor) -> Callable[[], float | None]:
    """Return what reads the energy used since its first call, in joules; None: not measured."""
    meter = EnergyMeter()

    def read_j() -> float | None:
        now_ns = time.monotonic_ns()
        energy = meter.add(now_ns, sensor.read(now_ns / 1e9))
        return None if energy is None else energy.joules

    return read_j


def _measure(
    runners: Sequence[_Runner], rounds: int, read_energy_j: Callable[[], float | None]
) -> None:
    for runner in runners:
        warm_ms = [_run_ms(runner) for _ in range(_WARM_UP_RUNS)]
        fitting = int(_TURN_MS / max(min(warm_ms), 1e-3))
        runner.runs_a_turn = min(max(fitting, 1), _MAX_RUNS_A_TURN)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for _ in progress.track(range(rounds), description="measuring"):
            for runner in runners:
                _take_turn(runner, read_energy_j)


def _take_turn(runner: _Runner, read_energy_j: Callable[[], float | None]) -> None:
    before_j = read_energy_j()
    runner.latencies_ms += [_run_ms(runner) for _ in range(runner.runs_a_turn)]
    after_j = read_energy_j()
    if before_j is not None and after_j is not None:
        runner.energies_mj.append((after_j - before_j) * 1e3 / runner.runs_a_turn)


def _run_ms(runner: _Runner) -> float:
    start_ns = time.perf_counter_ns()
    runner.engine.run(runner.pixels)
    return (time.perf_counter_ns() - start_ns) / 1e6


def _summary(runner: _Runner) -> Measured:
    times = sorted(runner.latencies_ms)
    deciles = quantiles(times, n=10, method="inclusive") if len(times) > 1 else times * 9
    info = runner.engine.info
    return Measured(
        model=runner.model,
        backend=info.backend,
        runtime=info.runtime,
        threads=info.threads,
        random_weights=runner.random,
        macs=runner.macs,
        runs=len(times),
        median_ms=median(times),
        p10_ms=deciles[0],
        p90_ms=deciles[-1],
        energy_mj=median(runner.energies_mj) if runner.energies_mj else None,
    )


def _show(results: Sequence[Measured], fits: Mapping[str, Fit], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("model", overflow="ellipsis", no_wrap=True)
    table.add_column("backend", no_wrap=True)
    for heading in ("MACs M", "median ms", "p10 ms", "p90 ms", "ms/100 M", "mJ"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.model + ("*" if result.random_weights else ""),
            result.backend,
            f"{result.macs / 1e6:.1f}",
            f"{result.median_ms:.3f}",
            f"{result.p10_ms:.3f}",
            f"{result.p90_ms:.3f}",
            f"{result.median_ms * 1e8 / result.macs:.3f}" if result.macs else "",
            f"{result.energy_mj:.2f}" if result.energy_mj is not None else "-",
        )
    console.print(table)
    for backend, fit in fits.items():
        console.print(f"{backend}: {_fit_text(fit)}", highlight=False)
    first = results[0]
    notes = [f"{first.runtime}, threads: {first.threads}; the models took turns"]
    if any(result.random_weights for result in results):
        notes.append("* random weights: the network's cost, no classifier")
    if all(result.energy_mj is None for result in results):
        notes.append("mJ per inference: not measured, no power source")
    console.print("\n".join(notes), highlight=False)


def _fit_text(fit: Fit) -> str:
    text = f"{fit.intercept_ms:.3f} ms + {fit.ms_per_million_macs * 100:.3f} ms per 100 M MACs"
    if fit.r_squared is None:
        return f"{text} (two points: no test of the line)"
    return f"{text}, R^2 {fit.r_squared:.4f}"


def _draw(
    by_backend: Mapping[str, Sequence[Measured]], fits: Mapping[str, Fit], path: Path
) -> None:
    series = {
        backend: [pictures.Point(r.model, r.macs, r.median_ms, r.p10_ms, r.p90_ms) for r in results]
        for backend, results in by_backend.items()
    }
    lines = {
        backend: pictures.Line(fit.intercept_ms, fit.ms_per_million_macs / 1e6, _fit_text(fit))
        for backend, fit in fits.items()
    }
    runtimes = dict.fromkeys(
        f"{r.runtime}, threads: {r.threads}" for results in by_backend.values() for r in results
    )
    pictures.plot_latency(
        series, lines, f"Latency against multiply-adds ({'; '.join(runtimes)})", path
    )
