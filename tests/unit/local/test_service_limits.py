"""The limits of a service: their defaults, their checks, and the table that documents them."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from errata.client.client import CHATS_AT_ONCE
from errata.local.service_limits import NAMES, ServiceLimits, limits_from
from errata.overrides import WrongSetting
from tests.architecture.test_fences import ROOT


def test_limits_are_read_from_text_and_from_numbers() -> None:
    found = limits_from({"max_queue": "50", "body_timeout_s": 2, "max_logprobs": "0"})
    assert (found.max_queue, found.body_timeout_s, found.max_logprobs) == (50, 2.0, 0)
    assert found.max_streams == ServiceLimits().max_streams


def test_limits_that_depend_on_each_other_come_in_any_order() -> None:
    names = {"max_ongoing_requests": "100", "reserved_requests": "20"}
    assert limits_from(names) == limits_from(dict(reversed(names.items())))
    assert limits_from(names).max_open_to_keys == 80


def test_a_key_of_any_role_may_ask_as_much_as_two_clients_do_concurrently() -> None:
    limits = ServiceLimits()
    for role in ("read", "propose", "edit", "admin"):
        assert limits.max_requests(role) >= 2 * limits.max_sequences("read") >= 4 * CHATS_AT_ONCE
        assert limits.max_sequences(role) >= 2 * CHATS_AT_ONCE and limits.max_requests(role) < limits.max_open_to_keys / 2


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("max_queue", "0", "0 is below 1"),
        ("max_queue", "many", "not of type int; give 10000"),
        ("max_body_bytes", "100", "100 is below 1024"),
        ("body_timeout_s", "0", "not a number of seconds above 0; give 10"),
        ("body_timeout_s", "inf", "not a number of seconds above 0"),
        ("reserved_requests", "1024", "leaves none of max_ongoing_requests=1024"),
        ("max_stream", "3", "did you mean max_streams"),
    ],
)
def test_a_wrong_limit_is_named_with_a_value_that_works(name: str, value: str, says: str) -> None:
    with pytest.raises(WrongSetting, match=re.escape(says)) as wrong:
        limits_from({name: value})
    assert wrong.value.name == name


def test_the_documented_limits_are_the_settings() -> None:
    page = (ROOT / "docs" / "access.md").read_text()
    section = re.search(r"^## Limits\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert section is not None
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section.group(1), re.MULTILINE)
    units = {"MiB": 2**20, "KiB": 2**10}
    listed = {}
    for name, shown in rows:
        number, _, unit = shown.strip().partition(" ")
        listed[name] = float(number.replace(",", "")) * units.get(unit, 1)
    assert listed == {one.name: one.default for one in fields(ServiceLimits)} and list(listed) == list(NAMES)
