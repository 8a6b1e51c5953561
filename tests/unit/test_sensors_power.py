"""Power, throttling and temperatures on trees of /sys and a `vcgencmd` of ours.

The trees and answers are written after the kernel's and Raspberry Pi's documentation and drivers;
none was recorded on a real device.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_app.sensors.power import Choice, PowerSensor, Reading
from edge_app.sensors.sampler import Sample, Sampler
from edge_app.sensors.thermal import read_thermal
from edge_app.sensors.throttle import CONDITIONS, Episodes, ThrottleSensor
from edge_app.sensors.vcgencmd import Vcgencmd
from edge_app.stats import Thermal, Throttled

RAILS = {
    "3V7_WL_SW": (0.0039, 3.7176),
    "3V3_SYS": (0.0420, 3.3103),
    "1V8_SYS": (0.1649, 1.8012),
    "DDR_VDD2": (0.0185, 1.1021),
    "DDR_VDDQ": (0.0000, 0.6059),
    "1V1_SYS": (0.1805, 1.1025),
    "0V8_SW": (0.3201, 0.8032),
    "VDD_CORE": (0.7780, 0.7203),
    "3V3_DAC": (0.0002, 3.3080),
    "3V3_ADC": (0.0003, 3.3080),
    "0V8_AON": (0.0044, 0.7961),
    "HDMI": (0.0120, 5.1393),
}
RAILS_W = sum(amperes * volts for amperes, volts in RAILS.values())


def pmic_answer(rails: dict[str, tuple[float, float]]) -> str:
    """Write what a Pi 5 answers: currents, voltages, and two voltages without a current."""
    lines = [f" {name}_A current({i})={a:.8f}A" for i, (name, (a, _)) in enumerate(rails.items())]
    lines += [f" {name}_V volt({i + 8})={v:.8f}V" for i, (name, (_, v)) in enumerate(rails.items())]
    lines += ["  EXT5V_V volt(24)=5.15398000V", "   BATT_V volt(25)=0.00830000V"]
    return "\n".join(lines)


PMIC = pmic_answer(RAILS)


def put(root: Path, **files: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def firmware(folder: Path, **answers: str) -> str:
    """Put a `vcgencmd` into `folder` that knows these answers only; return its path."""
    cases = "\n".join(f"{name}) cat <<'EOT'\n{text}\nEOT\n;;" for name, text in answers.items())
    unknown = "*) echo 'error=1 error_msg=\"Command not registered\"' ;;"
    return script(folder, f'case "$1" in\n{cases}\n{unknown}\nesac')


def script(folder: Path, body: str) -> str:
    path = folder / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def hwmon(root: Path, number: int, name: str, **files: str) -> Path:
    return put(root / f"class/hwmon/hwmon{number}", name=f"{name}\n", **files)


def rapl(root: Path, energy_uj: str = "1000000\n") -> Path:
    zone = put(
        root / "class/powercap/intel-rapl:0",
        name="package-0\n",
        energy_uj=energy_uj,
        max_energy_range_uj="262143328850\n",
    )
    put(root / "class/powercap/intel-rapl:0:0", name="core\n", energy_uj="5\n")
    return zone


def pi4(root: Path, folder: Path) -> str:
    put(root / "class/thermal/thermal_zone0", type="cpu-thermal\n", temp="51218\n")
    hwmon(root, 0, "cpu_thermal", temp1_input="51218\n")
    hwmon(root, 1, "rpi_volt", in0_lcrit_alarm="0\n")
    return firmware(folder, get_throttled="throttled=0x50000")


def pi5(root: Path, folder: Path) -> str:
    put(root / "class/thermal/thermal_zone0", type="cpu-thermal\n", temp="47950\n")
    hwmon(root, 0, "cpu_thermal", temp1_input="47950\n")
    hwmon(root, 1, "rp1_adc", in1_input="1476\n", temp1_input="48123\n")
    hwmon(root, 2, "pwmfan", fan1_input="0\n")
    hwmon(root, 3, "rpi_volt", in0_lcrit_alarm="0\n")
    return firmware(folder, get_throttled="throttled=0x0", pmic_read_adc=PMIC)


def reading(root: Path, vcgencmd: str = "/nowhere/vcgencmd", choice: Choice = "auto") -> object:
    found = PowerSensor(choice, root, vcgencmd).read(0)
    if found is None or found.watts is None:
        return found
    return found.source, round(found.watts, 6)


def test_a_pi_4_measures_no_power(tmp_path: Path) -> None:
    assert reading(tmp_path, pi4(tmp_path, tmp_path)) is None


def test_a_pi_5_estimates_by_the_published_fit(tmp_path: Path) -> None:
    expected = round(1.1451 * RAILS_W + 0.5879, 6)
    assert reading(tmp_path, pi5(tmp_path, tmp_path)) == ("pmic-estimate", expected)


@pytest.mark.parametrize("name", ["ina219", "ina226", "ina238"])
def test_a_meter_on_the_input_is_believed_before_an_estimate(tmp_path: Path, name: str) -> None:
    vcgencmd = pi5(tmp_path, tmp_path)
    hwmon(tmp_path, 4, name, in1_input="5080\n", curr1_input="612\n", power1_input="3112000\n")
    assert reading(tmp_path, vcgencmd) == (name, 3.112)


def test_a_meter_without_a_power_is_volts_by_amperes(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina226", in1_input="5000\n", curr1_input="600\n")
    assert reading(tmp_path) == ("ina226", 3.0)


def test_a_meter_that_counts_energy_is_taken_at_its_count(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina228", energy1_input="41000000\n", power1_input="3112000\n")
    assert reading(tmp_path) == Reading("ina228", counter_uj=41_000_000)


def test_chips_go_by_number_not_by_spelling(tmp_path: Path) -> None:
    hwmon(tmp_path, 10, "ina219", power1_input="10000000\n")
    hwmon(tmp_path, 9, "ina226", power1_input="9000000\n")
    assert reading(tmp_path) == ("ina226", 9.0)


def test_any_other_chip_but_no_graphics_card(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "amdgpu", power1_input="40000000\n")
    assert reading(tmp_path) is None
    assert reading(tmp_path, choice="hwmon") == ("amdgpu", 40.0)
    hwmon(tmp_path, 1, "power_meter", power1_input="61000000\n")
    assert reading(tmp_path) == ("power_meter", 61.0)


def test_poe_is_current_at_an_assumed_voltage(tmp_path: Path) -> None:
    supply = put(tmp_path / "class/power_supply/rpi-poe", current_now="840000\n", online="1\n")
    assert reading(tmp_path) == ("poe-estimate", 4.2)
    put(supply, online="0\n", current_now="1000\n")  # fed by its USB socket; noise
    assert reading(tmp_path) is None


def test_rapl_counts_the_package(tmp_path: Path) -> None:
    rapl(tmp_path)
    expected = Reading("rapl-package-0", counter_uj=1_000_000, wraps_uj=262_143_328_850)
    assert reading(tmp_path) == expected


def test_configuration_decides(tmp_path: Path) -> None:
    vcgencmd = pi5(tmp_path, tmp_path)
    hwmon(tmp_path, 4, "ina226", power1_input="3112000\n")
    assert reading(tmp_path, vcgencmd, "none") is None
    assert reading(tmp_path, vcgencmd, "rapl") is None
    found = PowerSensor("pmic", tmp_path, vcgencmd).read(0)
    assert found is not None
    assert found.source == "pmic-estimate"


HOSTILE = ["", "\n", "much", "-5\n", "nan", "1e3", "0x10", "9" * 30, "\0\0", "1 2", "3112000 W"]


@pytest.mark.parametrize("text", [*HOSTILE, "65535000000\n"])
def test_a_power_that_makes_no_sense_is_unknown(tmp_path: Path, text: str) -> None:
    hwmon(tmp_path, 0, "ina226", power1_input=text)
    assert reading(tmp_path) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_a_count_that_makes_no_sense_is_unknown(tmp_path: Path, text: str) -> None:
    rapl(tmp_path, text)
    assert reading(tmp_path) is None


def test_what_may_not_be_read_is_unknown(tmp_path: Path) -> None:
    """A directory fails for root as well, to whom no file is forbidden."""
    (rapl(tmp_path) / "energy_uj").unlink()
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").mkdir()
    put(tmp_path / "class/hwmon", hwmon0="a file")
    (tmp_path / "class/hwmon/hwmon1").symlink_to("hwmon1")
    assert reading(tmp_path) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_counter_for_root_alone_is_unknown_to_others(tmp_path: Path) -> None:
    (rapl(tmp_path) / "energy_uj").chmod(0)
    assert reading(tmp_path) is None


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "garbage",
        pmic_answer(dict(list(RAILS.items())[:11])),
        pmic_answer(RAILS | {"NEW_RAIL": (1.0, 1.0)}),
        PMIC.replace("=0.77800000A", "=-0.7780000A"),
        PMIC.replace("=0.77800000A", "=nanA"),
        PMIC.replace("=0.77800000A", "=900.0A"),
        PMIC.replace("VDD_CORE_A", "VDD_CORE_V"),
        '\xff\xfe" binary',
    ],
)
def test_rails_the_fit_does_not_hold_for_are_no_estimate(tmp_path: Path, answer: str) -> None:
    vcgencmd = firmware(tmp_path, pmic_read_adc=answer)
    assert reading(tmp_path, vcgencmd) is None


def test_a_source_that_fails_is_kept_for_a_while_then_replaced(tmp_path: Path) -> None:
    """One bad reading must not change what is measured; a meter that is gone must."""
    vcgencmd = pi5(tmp_path, tmp_path)
    chip = hwmon(tmp_path, 4, "ina226", power1_input="3000000\n")
    sensor = PowerSensor("auto", tmp_path, vcgencmd, retry_s=30)
    assert sensor.read(0) == Reading("ina226", 3.0)
    assert sensor.read(100) == Reading("ina226", 3.0)
    put(chip, power1_input="")
    assert sensor.read(101) is None
    put(chip, power1_input="3500000\n")
    assert sensor.read(102) == Reading("ina226", 3.5)
    put(chip, power1_input="")
    assert sensor.read(131) is None
    found = sensor.read(132)
    assert found is not None
    assert found.source == "pmic-estimate"


def test_a_source_that_comes_later_is_found(tmp_path: Path) -> None:
    sensor = PowerSensor("auto", tmp_path, "/nowhere", retry_s=30)
    assert sensor.read(0) is None
    hwmon(tmp_path, 0, "ina226", power1_input="3000000\n")
    assert sensor.read(29) is None
    assert sensor.read(30) == Reading("ina226", 3.0)


@pytest.mark.parametrize("is_missing", ["absent", "not executable", "behind a file"])
def test_a_vcgencmd_that_cannot_be_started_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_missing: str
) -> None:
    command = tmp_path / "vcgencmd"
    if is_missing != "absent":
        command.write_text("#!/bin/sh\n")
    if is_missing == "behind a file":
        command /= "vcgencmd"
    assert Vcgencmd("get_throttled", str(command)).ask() is None
    assert caplog.records == []


def test_what_measures_is_told_once_each_time_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chip = hwmon(tmp_path, 0, "ina226", power1_input="3000000\n")
    sensor = PowerSensor("auto", tmp_path, "/nowhere", retry_s=30)
    flapping = [(second, "3000000" if second % 2 else "") for second in range(1, 20)]
    for second, text in [*flapping, (50, ""), (51, ""), (81, ""), (82, "3000000")]:
        put(chip, power1_input=text)
        sensor.read(second)
    told = [record.getMessage() for record in caplog.records]
    assert [text.split(" (")[0] for text in told] == [
        "power: measured by ina226",
        "power: nothing measures it",
        "power: measured by ina226",
    ]


@pytest.mark.parametrize(("choice", "told"), [("auto", 0), ("none", 0), ("ina2xx", 1)])
def test_a_meter_that_is_missing_is_news_only_when_it_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, choice: Choice, told: int
) -> None:
    caplog.set_level(logging.INFO)
    sensor = PowerSensor(choice, tmp_path, "/nowhere", retry_s=30)
    assert [sensor.read(now_s) for now_s in (0, 40, 80)] == [None] * 3
    assert len(caplog.records) == told


def throttled(tmp_path: Path, vcgencmd: str) -> Throttled:
    return ThrottleSensor(Vcgencmd("get_throttled", vcgencmd), tmp_path).read()


@pytest.mark.parametrize(
    ("bits", "now", "since_boot"),
    [
        ("0x0", (), ()),
        ("0x50000", (), ("under_voltage", "throttled")),
        ("0x50005", ("under_voltage", "throttled"), ("under_voltage", "throttled")),
        ("0xf000a", ("arm_capped", "soft_temp_limit"), CONDITIONS),
        ("0xe0008", ("soft_temp_limit",), CONDITIONS[1:]),
    ],
)
def test_throttling_bits(
    tmp_path: Path, bits: str, now: tuple[str, ...], since_boot: tuple[str, ...]
) -> None:
    vcgencmd = firmware(tmp_path, get_throttled=f"throttled={bits}")
    assert throttled(tmp_path, vcgencmd) == Throttled(now, since_boot, CONDITIONS)


def test_throttling_is_told_once_when_it_begins_gets_worse_and_is_over() -> None:
    episodes = Episodes()

    def kinds(now: tuple[str, ...] | None, now_s: float) -> str:
        event = episodes.note(Throttled(now), now_s)
        return f"{event.kind}: {event.details.get('conditions')}" if event else ""

    assert kinds(None, 0) == kinds((), 1) == ""
    assert kinds(("under_voltage",), 2) == "throttled: under_voltage"
    assert kinds((), 3) == kinds(("under_voltage",), 4) == ""  # it flickers
    assert kinds(("throttled",), 5) == "throttled: throttled, under_voltage"
    assert kinds((), 64) == kinds(None, 1000) == ""
    assert kinds((), 65) == "throttled_over: None"
    assert kinds((), 1000) == ""
    assert kinds(("throttled",), 1001) == "throttled: throttled"


def test_without_firmware_only_under_voltage_is_known(tmp_path: Path) -> None:
    chip = hwmon(tmp_path, 1, "rpi_volt", in0_lcrit_alarm="0\n")
    assert throttled(tmp_path, "/nowhere") == Throttled((), None, ("under_voltage",))
    put(chip, in0_lcrit_alarm="1\n")
    assert throttled(tmp_path, "/nowhere") == Throttled(("under_voltage",), None, CONDITIONS[:1])


@pytest.mark.parametrize("alarm", ["", "2\n", "-1\n", "yes"])
def test_no_word_on_throttling_is_unknown(tmp_path: Path, alarm: str) -> None:
    hwmon(tmp_path, 1, "rpi_volt", in0_lcrit_alarm=alarm)
    assert throttled(tmp_path, "/nowhere") == Throttled()


@pytest.mark.parametrize(
    "body",
    [
        "echo VCHI initialization failed; exit 255",
        "echo throttled=",
        "echo throttled=0xfffffffff",
        "echo throttled=5",
        "printf '\\377\\376'",
        "exit 0",
        "kill -9 $$",
    ],
)
def test_a_firmware_that_answers_nonsense_leaves_the_kernel(tmp_path: Path, body: str) -> None:
    hwmon(tmp_path, 1, "rpi_volt", in0_lcrit_alarm="1\n")
    found = throttled(tmp_path, script(tmp_path, body))
    assert found == Throttled(("under_voltage",), None, ("under_voltage",))


def test_a_firmware_that_hangs_is_given_up_and_not_asked_again_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = tmp_path / "asked"
    question = Vcgencmd("get_throttled", script(tmp_path, f"echo x >> {asked}; exec sleep 1000"))
    assert [question.ask() for _ in range(5)] == [None] * 5
    assert asked.read_text() == "x\n"
    assert "timed out" in caplog.text


def test_a_firmware_that_fails_is_asked_again_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    question = Vcgencmd("get_throttled", script(tmp_path, "exit 1"), retry_s=0)
    assert [question.ask() for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    script(tmp_path, "echo throttled=0x0")
    assert question.ask() == "throttled=0x0\n"


def test_no_firmware_is_nothing_to_complain_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert Vcgencmd("get_throttled", str(tmp_path / "missing")).ask() is None
    assert not caplog.records


def test_the_hottest_tpu(tmp_path: Path) -> None:
    put(tmp_path / "class/apex/apex_0", temp="48050\n")
    put(tmp_path / "class/apex/apex_1", temp="61300\n")
    put(tmp_path / "class/apex/apex_2", temp="\n")
    put(tmp_path / "class/apex/apex_3", temp="999999\n")
    assert read_thermal(tmp_path).tpu == 61.3


def wait_for(sampler: Sampler, good: Callable[[Sample], bool]) -> Sample:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        sample = sampler.newest(time.monotonic_ns())
        if good(sample):
            return sample
        time.sleep(0.005)
    pytest.fail("the sampler never said so")


def test_the_sampler_reads_all_and_goes_on_after_failures(tmp_path: Path) -> None:
    vcgencmd = pi4(tmp_path, tmp_path)
    chip = hwmon(tmp_path, 4, "ina226", power1_input="3000000\n")
    with Sampler(sysfs_root=tmp_path, vcgencmd=vcgencmd, period_s=0.01, retry_s=0) as sampler:
        sample = wait_for(sampler, lambda sample: bool(sample.energy and sample.energy.joules))
        assert sample.energy is not None
        assert sample.energy.source == "ina226"
        assert sample.energy.joules == pytest.approx(3.0 * sample.energy.measured_s)
        assert sample.thermal.soc == 51.218
        assert sample.throttled.since_boot == ("under_voltage", "throttled")
        put(chip, power1_input="garbage")
        (tmp_path / "vcgencmd").unlink()
        (tmp_path / "class/thermal/thermal_zone0/temp").unlink()
        wait_for(sampler, lambda sample: bool(sample.energy and sample.energy.newest_w is None))
        wait_for(sampler, lambda sample: sample.thermal.soc is None)
        wait_for(sampler, lambda sample: sample.throttled.known == ("under_voltage",))
        put(chip, power1_input="4000000\n")
        wait_for(sampler, lambda sample: bool(sample.energy and sample.energy.newest_w == 4.0))


def test_what_is_old_is_unknown(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina226", power1_input="3000000\n")
    with Sampler(sysfs_root=tmp_path, vcgencmd="/nowhere", period_s=1000) as sampler:
        wait_for(sampler, lambda sample: sample.energy is not None)
        assert sampler.newest(time.monotonic_ns() + 6_000_000_000) == Sample()


def test_a_firmware_that_hangs_holds_up_neither_readers_nor_the_end(tmp_path: Path) -> None:
    began = tmp_path / "began"
    vcgencmd = script(tmp_path, f"touch {began}; exec sleep 1000")
    with Sampler(sysfs_root=tmp_path, vcgencmd=vcgencmd) as sampler:
        while not began.exists():
            assert sampler.newest(time.monotonic_ns()) == Sample()


def test_an_empty_machine_knows_nothing(tmp_path: Path) -> None:
    assert reading(tmp_path / "none") is None
    assert read_thermal(tmp_path / "none") == Thermal()
    assert throttled(tmp_path / "none", "/nowhere") == Throttled()
