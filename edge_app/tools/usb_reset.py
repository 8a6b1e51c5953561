"""The privileged oneshot behind `edge-app-usb-reset.service`: cures a Coral that hangs on its port.

It finds the devices by itself and believes nothing of the request but that it is there: whoever
runs as the appliance's user can have a Coral reset, within the budgets, and nothing else.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_app.engine.devices import EdgeTpu, attached
from edge_app.errors import EXIT_BUG, EXIT_OK
from edge_app.files import write_file
from edge_app.service.journal import log_to_journal
from edge_app.service.ladder import Attempt, Rung, next_rung, within_a_day

log = logging.getLogger(__name__)

_USBDEVFS_RESET = 0x5514  # _IO('U', 20) of linux/usbdevice_fs.h
_OFF_S = 3
_COMMAND_S = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the next rung of the ladder, if there is one; see docs/service.md."""
    args = _parser().parse_args(arguments)
    if not log_to_journal(logging.INFO):
        logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        return _climb_one(args)
    finally:
        # Who asks before a rung can have helped asks for the same once more.
        time.sleep(args.settle_s)
        args.request.unlink(missing_ok=True)  # or the path unit would start us again


def _climb_one(args: argparse.Namespace) -> int:
    tpus = [tpu for tpu in attached(args.sysfs, args.dev) if tpu.bus == "usb"]
    if not tpus:
        log.info("no Coral on USB: nothing to do")
        return EXIT_OK
    a_day = {Rung.RESET: args.resets, Rung.POWER: args.power_cycles, Rung.REBOOT: args.reboots}
    able = {Rung.RESET, Rung.REBOOT} | ({Rung.POWER} if shutil.which("uhubctl") else set())
    history, now_s = read_history(args.history), time.time()
    rung = next_rung(history, now_s, a_day, able)
    if rung is None:
        log.warning("%s: nothing left to try now; pull its plug and put it back", tpus[0].path)
        return EXIT_OK
    # Noted before it is done: a reboot that does not help must not be tried for ever.
    history = (*within_a_day(history, now_s), Attempt(rung, now_s))
    write_file(args.history, msgspec.json.encode(history))
    spent = sum(attempt.rung is rung for attempt in history)
    log.warning("%s: %s (%d of %d a day)", tpus[0].path, rung, spent, a_day[rung])
    return EXIT_OK if climb(rung, tpus) else EXIT_BUG


def climb(rung: Rung, tpus: Sequence[EdgeTpu]) -> bool:
    """Do what the rung says to every device; False when some of it failed."""
    if rung is Rung.REBOOT:
        return _runs("systemctl", "reboot")
    do = _reset if rung is Rung.RESET else _power_cycle
    done = [do(tpu) for tpu in tpus]  # every one, whatever came of the others
    return all(done)


def read_history(path: Path) -> tuple[Attempt, ...]:
    """Return what was tried before, oldest first; nothing when the file is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Attempt, ...])
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s: what was tried before is lost: %s", path, error)
        return ()


def _reset(tpu: EdgeTpu) -> bool:
    """Reset the port, as `usbreset` does: the device starts anew and is enumerated again."""
    try:
        with Path(tpu.node).open("r+b", buffering=0) as node:
            fcntl.ioctl(node, _USBDEVFS_RESET)
    except OSError as error:
        log.warning("%s: cannot be reset: %s", tpu.node, error.strerror)
        return False
    return True


def _power_cycle(tpu: EdgeTpu) -> bool:
    """Take the port's power away and give it back; not every hub can."""
    hub, port = hub_and_port(Path(tpu.path).name)
    return _runs("uhubctl", "-a", "cycle", "-d", str(_OFF_S), "-l", hub, "-p", port)


def hub_and_port(name: str) -> tuple[str, str]:
    """Split the kernel's name of a device: "1-1.4" is port 4 of hub 1-1, "2-3" port 3 of bus 2."""
    separator = "." if "." in name else "-"
    hub, _, port = name.rpartition(separator)
    return hub, port


def _runs(*command: str) -> bool:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_COMMAND_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s: %s", command[0], error)
        return False
    said = (done.stdout + done.stderr).strip()
    log.log(
        logging.WARNING if done.returncode else logging.INFO,
        "%s: exit status %d%s",
        " ".join(command),
        done.returncode,
        f": {said}" if said else "",
    )
    return done.returncode == 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="usb_reset", description=__doc__)
    parser.add_argument("--request", type=Path, required=True, help="the file that asked for it")
    parser.add_argument("--history", type=Path, required=True, help="what was tried, and when")
    for name, count in (("resets", 6), ("power-cycles", 3), ("reboots", 0)):
        parser.add_argument(f"--{name}", type=int, default=count, help="at most, in 24 hours")
    parser.add_argument("--settle-s", type=float, default=30.0, help="wait so long afterwards")
    parser.add_argument("--sysfs", type=Path, default=Path("/sys"), help="for tests")
    parser.add_argument("--dev", type=Path, default=Path("/dev"), help="for tests")
    return parser


if __name__ == "__main__":
    sys.exit(main())
