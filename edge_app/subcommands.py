"""What each command of `edge-app` does with its arguments: it imports its tool, and calls it.

Nothing is imported before it is asked for: `edge-app --help` is to answer at once on a Pi.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_app.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from edge_app.config import Config


def run(args: argparse.Namespace) -> int:
    if args.forget:
        from edge_app import config
        from edge_app.tools import forget

        return forget.forget(config.load(args.config))
    import faulthandler

    from edge_app.stop import Stop

    faulthandler.enable()  # where every thread was, when a library crashes or the watchdog strikes
    asked_to_stop = Stop()
    supervised = "NOTIFY_SOCKET" in os.environ
    with asked_to_stop.on_signals(supervised=supervised):  # before the imports: they take longest
        from edge_app import appliance, config

        appliance.run(config.load(args.config), asked_to_stop, partial(_read, args.config))
    return EXIT_OK


def demo(args: argparse.Namespace) -> int:
    from edge_app.tools import demo

    for number in (signal.SIGTERM, signal.SIGHUP):  # its parts end with it, as at Ctrl-C
        signal.signal(number, signal.default_int_handler)
    return demo.run(seconds=args.seconds)


def watch(args: argparse.Namespace) -> int:
    from edge_app import config
    from edge_app.tools import watch

    return watch.run(config.load(args.config).mqtt, args.device, seconds=args.seconds)


def doctor(args: argparse.Namespace) -> int:
    from edge_app.tools import doctor

    return doctor.run(args.config, as_json=args.json)


def health(args: argparse.Namespace) -> int:
    from edge_app import config
    from edge_app.tools import health

    loaded = config.load(args.config)
    # Without a heartbeat nothing need be said of a scene that does not change.
    quiet = loaded.publish.mode == "changes" and not loaded.publish.heartbeat_s
    return health.run(
        loaded,
        unit=args.unit,
        wanted=health.Wanted(args.backend, not (args.no_result or quiet), args.slower_by),
        seconds=args.seconds or loaded.publish.heartbeat_s + 60,
        watch_s=args.watch_s,
        baseline=args.baseline,
        as_json=args.json,
    )


def classify(args: argparse.Namespace) -> int:
    from edge_app.tools import classify

    return classify.run(
        args.images,
        model=args.model,
        labels=args.labels,
        backend=args.backend,
        top_k=args.top_k,
        as_json=args.json,
    )


def models_list(args: argparse.Namespace) -> int:
    from edge_app.tools import models

    return models.list_models(as_json=args.json)


def models_inspect(args: argparse.Namespace) -> int:
    from edge_app.tools import inspect

    return inspect.inspect_model(args.model, as_json=args.json, plot=args.plot)


def models_verify(args: argparse.Namespace) -> int:
    from edge_app.tools import models

    return models.verify(args.model, as_json=args.json)


def models_fetch(args: argparse.Namespace) -> int:
    from edge_app.tools import fetch

    return fetch.fetch(args.model, trust_on_first_use=args.trust_on_first_use, source=args.source)


def models_add(args: argparse.Namespace) -> int:
    from edge_app.tools import models

    return models.add(args.path, labels=args.labels, images=args.image, name=args.name)


def bench(args: argparse.Namespace) -> int:
    if args.models is not None:
        if args.seconds is not None:
            raise UsageError("--seconds and --models do not go together", hint="leave one out")
        from edge_app.tools import bench_models

        return bench_models.bench_models(args.models, plot=args.plot, as_json=args.json)
    if args.plot is not None:
        raise UsageError("--plot draws what --models measures", hint="add --models A,B,C")
    from edge_app.tools import bench

    return bench.run(seconds=args.seconds or bench.DEFAULT_S, as_json=args.json)


def config_check(args: argparse.Namespace) -> int:
    from edge_app import config
    from edge_app.tools import config_check

    loaded = config.load(args.config, config_check.faults)
    for note in config_check.notes(loaded):
        print(f"note: {note}", file=sys.stderr)  # it may be mounted by the time it is needed
    print(f"{args.config}: fine")
    return EXIT_OK


def _read(path: Path) -> Config:
    """Load the file, and look whether its model is there. Raises ConfigError with every fault."""
    from edge_app import config
    from edge_app.tools import config_check

    return config.load(path, config_check.missing_model)


def config_show(args: argparse.Namespace) -> int:
    from edge_app import config

    print(config.show(config.load(args.config)), end="")
    return EXIT_OK


def config_schema(_args: argparse.Namespace) -> int:
    import json

    from edge_app import config

    print(json.dumps(config.schema(), indent=2))
    return EXIT_OK
