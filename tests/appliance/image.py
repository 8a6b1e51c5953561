"""Builds what the machines are made of, once: QEMU, and a Debian 13 with a camera of software.

    python -m tests.appliance.image [amd64|arm64]

Everything comes from the archive this machine's apt uses. What was built is kept outside the
repository, in a directory named by a hash of what it was made from. Needs root, as mmdebstrap does
to make files that belong to root.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITE = "trixie"
IMAGE_SIZE = "4G"  # sparse
# libcamera scales them to the size it was asked for.
FRAMES = (ROOT / "models" / "samples" / "cat.jpg",)
# A Raspberry Pi OS Lite has all of these, or something that does the same.
PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-timesyncd", "udev", "dbus", "libpam-systemd", "kmod"),
    *("openssh-server", "iproute2", "procps", "sudo", "ca-certificates", "polkitd"),
    *("python3", "python3-venv", "python3-apt", "python3-systemd"),
    *("python3-numpy", "python3-libcamera"),
    # What picamera2 needs of the distribution; the rest is in picamera2.txt.
    *("python3-jsonschema", "python3-libarchive-c", "python3-pil", "python3-piexif"),
    *("python3-prctl", "python3-tqdm"),
    "mosquitto",  # the broker's role finds it installed
)
KERNELS = {"amd64": "linux-image-cloud-amd64", "arm64": "linux-image-cloud-arm64"}
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
QEMU_PACKAGES = {"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}
# Nobody reads them there, and they are a third of the files.
UNREAD = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")
MASKED = (
    *("systemd-networkd-wait-online.service", "apt-daily.timer", "apt-daily-upgrade.timer"),
    *("dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
)


KEPT_S = 86_400  # what another checkout may still use


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine starts from. `key` lets in `pi` and root."""

    architecture: str
    tree: Path
    disk: Path
    kernel: Path
    key: Path
    host_key: Path


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edge-app" / "appliance"


def qemu_tree() -> Path:
    """Return a directory tree that holds Debian 13's QEMU, whatever this machine's own is."""
    host = debian_architecture()
    packages = tuple(QEMU_PACKAGES.values())

    def build(folder: Path) -> None:
        _mmdebstrap(folder / "tree", host, packages, "--variant=extract")

    return _cached("qemu", (SUITE, host, *packages), build) / "tree"


def image(architecture: str) -> Image:
    """Return the guest's disk and kernel."""
    made_from = [SUITE, architecture, IMAGE_SIZE, *PACKAGES, *MASKED, KERNELS[architecture]]
    sources = [Path(__file__), HERE / "picamera2.txt", *FRAMES]
    sources += [path for path in sorted((HERE / "guest").rglob("*")) if path.is_file()]
    made_from += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]

    def build(folder: Path) -> None:
        _build_image(folder, architecture)

    folder = _cached(f"guest-{architecture}", made_from, build)
    return Image(
        architecture=architecture,
        tree=folder / "tree",
        disk=folder / "disk.img",
        kernel=folder / "kernel",
        key=folder / "key",
        host_key=folder / "host_key.pub",
    )


def debian_architecture() -> str:
    """Return this machine's architecture as Debian calls it."""
    machine = os.uname().machine
    return {name: debian for debian, name in MACHINES.items()}.get(machine, machine)


def _cached(name: str, made_from: Sequence[str], build: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    folder = cache_dir() / f"{name}-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f"{name}-*"):
            if time.time() - old.stat().st_mtime > KEPT_S:
                shutil.rmtree(old)
        sys.stderr.write(f"building {name} (once; kept in {folder}) ...\n")
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as new:
            (Path(new) / "result").mkdir()
            build(Path(new) / "result")
            (Path(new) / "result").rename(folder)
        sys.stderr.write(f"built in {time.monotonic() - started_s:.0f} s\n")
    return folder


def _build_image(folder: Path, architecture: str) -> None:
    tree = folder / "tree"
    unread = [f"--dpkgopt=path-exclude={pattern}" for pattern in UNREAD]
    packages = (*PACKAGES, KERNELS[architecture])
    _mmdebstrap(tree, architecture, packages, "--variant=apt", *unread)
    _install_picamera2(tree, architecture)
    for source in sorted((HERE / "guest").rglob("*")):
        target = tree / source.relative_to(HERE / "guest")
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif "__pycache__" not in source.parts:
            target.write_bytes(source.read_bytes())
            target.chmod(0o644)
    frames = tree / "usr/share/libcamera/pipeline/virtual/frames"
    frames.mkdir()
    for number, frame in enumerate(FRAMES):
        shutil.copy(frame, frames / f"{number}.jpg")
    _let_in(tree, folder)
    _settle(tree)
    kernel = next((tree / "boot").glob("vmlinuz-*"))
    shutil.copy(kernel, folder / "kernel")
    shutil.rmtree(tree / "boot")
    (tree / "boot").mkdir()
    disk = folder / "disk.img"
    subprocess.run(["truncate", "-s", IMAGE_SIZE, disk], check=True)
    # Nothing is left to be written later, which would look like the appliance's doing.
    all_now = "lazy_itable_init=0,lazy_journal_init=0"
    command = [_mke2fs(), "-q", "-t", "ext4", "-E", all_now, "-d", str(tree), str(disk)]
    subprocess.run(command, check=True)


def _mmdebstrap(tree: Path, architecture: str, packages: Sequence[str], *options: str) -> None:
    command = ["mmdebstrap", "--quiet", f"--architectures={architecture}"]
    command += [*options, f"--include={','.join(packages)}", *_apt_options(), SUITE, str(tree)]
    command += _mirror()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"mmdebstrap ended with {done.returncode}:\n{done.stderr}")


def _mirror() -> list[str]:
    """Return where this machine's apt has Debian's packages from; [] leaves it to mmdebstrap."""
    found = _apt("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)")
    return [line.split()[0] for line in found.splitlines() if line.endswith(" Debian Debian")][:1]


def _apt_options() -> list[str]:
    """Return how this machine's apt fetches (proxies, how old an index may be), for mmdebstrap."""
    settings = _apt("apt-config", "dump", "Acquire").splitlines()
    names = ("http", "https", "Check-Valid-Until", "Check-Date")
    wanted = tuple(f"Acquire::{name}" for name in names)
    return [f"--aptopt={line}" for line in settings if line.startswith(wanted)]


def _apt(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _install_picamera2(tree: Path, architecture: str) -> None:
    """Put the real picamera2 where Raspberry Pi OS's package does, and our camera behind it."""
    target = tree / "usr/lib/python3/dist-packages"
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--root-user-action=ignore"]
    command += ["--target", str(target), "--only-binary=:all:", "--python-version=3.13"]
    command += ["--platform", f"manylinux_2_28_{MACHINES[architecture]}"]
    command += ["--abi=cp313", "--abi=abi3", "--abi=none", "-r", str(HERE / "picamera2.txt")]
    command += ["--ignore-requires-python"]  # an older pip asks it of the Python that runs pip
    subprocess.run(command, check=True)
    with (target / "picamera2" / "__init__.py").open("a") as module:
        module.write("\nimport software_camera\n")


def _let_in(tree: Path, folder: Path) -> None:
    """Make the guest's host key, and the key that lets in `pi` and root."""
    for name, target in (("key", folder / "key"), ("host key", folder / "host_key")):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"guest's {name}"]
        subprocess.run([*command, "-f", target], check=True)
    for old in (tree / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    (folder / "host_key").rename(tree / "etc/ssh/ssh_host_ed25519_key")
    in_tree = ["chroot", str(tree)]
    groups = "sudo,video,plugdev,users"
    subprocess.run([*in_tree, "useradd", "-m", "-s", "/bin/bash", "-G", groups, "pi"], check=True)
    for home in ("home/pi", "root"):
        ssh = tree / home / ".ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(folder / "key.pub", ssh / "authorized_keys")
    subprocess.run([*in_tree, "chown", "-R", "pi:pi", "/home/pi/.ssh"], check=True)


def _settle(tree: Path) -> None:
    """Do now what a first boot would do, and leave out what a machine of an hour does not need."""
    modules = next((tree / "usr/lib/modules").iterdir()).name
    for command in (
        ["depmod", modules],
        ["systemctl", "enable", "systemd-networkd.service"],
        ["systemctl", "disable", "mosquitto.service"],
        ["systemctl", "mask", *MASKED],
        ["python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages"],
    ):
        subprocess.run(["chroot", str(tree), *command], check=True, capture_output=True)
    (tree / "etc/machine-id").write_text("")  # the kernel command line gives one
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 cam-1 cam-2\n")
    (tree / "etc/fstab").write_text("/dev/root / ext4 defaults,noatime 0 1\n")


def _mke2fs() -> str:
    found = shutil.which("mke2fs") or shutil.which("mke2fs", path="/usr/sbin:/sbin")
    assert found, "mke2fs is not installed; tests/appliance/system-packages installs it"
    return found


if __name__ == "__main__":
    qemu_tree()
    image(sys.argv[1] if len(sys.argv) > 1 else debian_architecture())
