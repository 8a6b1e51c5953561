"""Any data at all into a configuration: faults are listed, nothing raises."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.config import Config, parse
from edge_app.errors import ConfigError
from edge_app.validate import convert, nearest, shown

WORDS = (
    "camera main source size_px fps loop device id mqtt url model top_k threshold publish mode "
    "spool max_mb stats interval_s"
)
KEYS = st.sampled_from(WORDS.split()) | st.text(max_size=5)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 2**64, -(2**70), 10**400])
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["picamera:0", "every", "auto", "mqtt://h", "\0", "\n"])
    | st.just(dt.datetime(2026, 11, 22, 20, 0, tzinfo=dt.UTC))
    | st.just(dt.date(2026, 11, 22))
    | st.just(dt.time(20, 0)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=6)


@given(TABLES)
def test_no_data_makes_it_raise(data: dict[str, Any]) -> None:
    config, faults = convert(Config, data)
    assert config is not None or faults
    for fault in faults:
        assert fault.count(": ") >= 1
        assert "allowed: " in fault


@given(st.dictionaries(KEYS, TABLES, max_size=4))
def test_no_table_of_tables_makes_it_raise(data: dict[str, Any]) -> None:
    convert(Config, data)


@pytest.mark.parametrize("data", [None, 3, [], "text"])
def test_what_is_no_table_at_all(data: object) -> None:
    config, faults = convert(Config, data)
    assert config is None
    assert len(faults) == 1


@given(st.text(max_size=40))
def test_no_text_makes_parsing_crash(text: str) -> None:
    with pytest.raises(ConfigError):  # no text this short holds a camera
        parse(text, "fuzz.toml")


@pytest.mark.parametrize(
    "text",
    ["a = " + "1" * 5000, "a = " + "[" * 3000, "[camera.a]\nfps = 0x" + "f" * 5000],
    ids=["endless-number", "endless-nesting", "endless-hexadecimal"],
)
def test_text_that_python_gives_up_on(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text, "hostile.toml")


def test_shown_is_cut() -> None:
    assert shown("a" * 200) == '"' + "a" * 76 + "..."
    assert shown({"a": [1, True]}) == '{"a": [1, true]}'


def test_nearest() -> None:
    assert nearest("tresholt", ["threshold", "top_k"]) == " (did you mean threshold?)"
    assert nearest("xyz", ["threshold", "top_k"]) == ""
