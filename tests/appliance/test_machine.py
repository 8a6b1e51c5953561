"""The machine that stands for a Raspberry Pi: what the other tests here take for granted."""

from __future__ import annotations

from tests.appliance.conftest import needs_camera
from tests.appliance.guest import Guest

_TAKE_A_PICTURE = """
from picamera2 import Picamera2

camera = Picamera2()
camera.configure(camera.create_video_configuration(main={"size": (300, 224)}))
camera.start()
request = camera.capture_request(wait=60)
print(camera.camera_configuration()["main"]["format"], request.make_buffer("main").std())
request.release()
camera.close()
"""


def test_it_boots_with_every_unit_up(machine: Guest) -> None:
    assert machine.attempt("systemctl is-system-running --wait").stdout == "running\n"


def test_what_was_synced_survives_a_power_cut_and_what_was_not_does_not(machine: Guest) -> None:
    machine.run("mkdir /kept && echo it > /kept/synced && sync && echo it > /kept/unsynced")

    machine.cut_power()
    machine.start()

    assert machine.run("cat /kept/synced") == "it\n"
    assert machine.attempt("grep it /kept/unsynced").returncode != 0
    machine.run("rm -r /kept")


@needs_camera
def test_its_camera_takes_pictures_with_the_real_picamera2(machine: Guest) -> None:
    taken = machine.run("python3 -", input_text=_TAKE_A_PICTURE)

    assert taken.split()[0] == "YUV420"
    assert float(taken.split()[1]) > 20
