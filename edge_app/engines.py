"""Opens the configured model where it is to run: on the CPU, or on an Edge TPU with the CPU behind.

With the composition root in `appliance`, the only place that knows models, engines and settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from edge_app.catalog import ModelFiles, shipped_dir
from edge_app.config import ModelConfig
from edge_app.domain import Engine, Performance, Tensor
from edge_app.engine.edgetpu import EdgeTpuEngine
from edge_app.engine.failover import FailoverEngine
from edge_app.engine.opening import EdgeTpuModel
from edge_app.engine.supervisor import Canary
from edge_app.errors import ModelError
from edge_app.task.classify import scores
from edge_app.task.image import fit, read_image
from edge_app.verify import open_verified

log = logging.getLogger(__name__)

# With backend "edgetpu", the CPU may stand in for this long: two of the longest pauses between two
# tries to open it again.
REQUIRED_WITHIN_S = 90.0
_TOLERANCE = 0.1  # of a score, for a model without a passport
_MAX_CANARIES = 4


def open_engine(config: ModelConfig, files: ModelFiles, *, settle: bool = False) -> Engine:
    """Open the model, held to its passport, on the configured backend.

    "auto" is the Edge TPU when the model has a file for one, with the CPU as its stand-in, and does
    not wait for it; with `settle` it does, as a command that runs once should. Raises EngineError
    when the backend is not there, ModelError when the model is refused.
    """
    required = config.backend == "edgetpu"
    if required and files.edgetpu is None:
        raise ModelError(
            f'model.backend is "edgetpu", but {files.name} has no file compiled for it',
            hint="put NAME_edgetpu.tflite beside NAME.tflite, name another model "
            '(`edge-app models list`), or set model.backend = "auto"',
        )
    cpu = open_verified(files, threads=config.threads, runtime=config.runtime)
    if config.backend == "cpu":
        return cpu
    if files.edgetpu is None:
        log.debug("%s has no file compiled for an Edge TPU: the CPU runs it", files.name)
        return cpu
    engine = FailoverEngine(
        cpu,
        edgetpu_starter(config, files, config.performance),
        canaries(files, cpu),
        required_within_s=REQUIRED_WITHIN_S if required else None,
    )
    if settle:
        engine.settle()
    return engine


def edgetpu_starter(
    config: ModelConfig, files: ModelFiles, performance: Performance
) -> Callable[[], EdgeTpuEngine]:
    """Return what starts to open the model on the Edge TPU, at the clock `performance` says."""
    model = EdgeTpuModel(
        str(files.edgetpu),
        name=files.name,
        runtime=config.runtime,
        device=config.device,
        performance=performance,
    )
    return lambda: EdgeTpuEngine(model)


def canaries(files: ModelFiles, cpu: Engine) -> list[Canary]:
    """Return pictures with the CPU twin's answers, which the accelerator's must come near.

    The pictures are the passport's golden images, on which the CPU twin was verified; without
    them, the sample photos.
    """
    if files.passport is not None and files.passport.golden:
        pictures = [files.folder / golden.image for golden in files.passport.golden]
        tolerance = files.passport.tolerance
    else:
        pictures = sorted((shipped_dir() / "samples").glob("*.jpg"))
        tolerance = files.passport.tolerance if files.passport else _TOLERANCE
    made = []
    for picture in pictures[:_MAX_CANARIES]:
        pixels = fit(read_image(picture), cpu.info.input_px).pixels
        made.append(Canary(pixels, _judge(cpu, cpu.run(pixels), tolerance)))
    return made


def _judge(
    cpu: Engine, expected: Sequence[Tensor], tolerance: float
) -> Callable[[list[Tensor]], str]:
    """Return what says how outputs differ from the `expected` ones: in scores, as far as matters.

    The Edge TPU rounds differently from the CPU: by a few steps of 256, far below the tolerance.
    """
    spec = cpu.info.outputs[0]
    wanted = scores(expected[0], spec)

    def fault(outputs: list[Tensor]) -> str:
        found = scores(outputs[0], spec)
        worst = int(np.argmax(np.abs(found - wanted)))
        if abs(float(found[worst] - wanted[worst])) <= tolerance:
            return ""
        return (
            f"class {worst} scores {found[worst]:.3f}, should be {wanted[worst]:.3f} "
            f"within {tolerance:g}"
        )

    return fault
