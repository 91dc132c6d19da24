"""Bodies of requests: JSON and content types that are accepted or refused."""

from __future__ import annotations

import json

import pytest
from fastapi import FastAPI

from serving.api.codes import RequestCode
from serving.api.request_body import BadRequest, parse_json
from tests.unit.serving.api.application import call


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[" * 100_000,
        b"[" * 65 + b"]" * 65,
        b"[" * 64 + b"{}" + b"]" * 64,
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"[-1.0E+400]",
        b"[" + b"9" * 400 + b".0]",
        b'{"a": 9223372036854775808}',
        b'{"a": -9223372036854775809}',
        b"9" * 10_000,
        b'{"\\ud800": 1}',
        b'["\\uDFFF"]',
        b'["\x00"]',
        b"\xff",
        '{"a": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
    ],
)
def test_json_outside_the_limits_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_json(body, 64)
    assert (raised.value.refusal.status, raised.value.refusal.code) == (400, RequestCode.INVALID_JSON)


def test_a_name_that_occurs_twice_has_its_last_value() -> None:
    assert parse_json(b'{"a": 1, "a": 2}', 64) == {"a": 2}


def test_json_within_the_limits_is_accepted() -> None:
    for data in (
        {"a": [1, -(2**63), 2**63 - 1, 0.5, None, "[[[["], "b": [1e300, -5e-324, 10**18, 1.5e-999]},
        "\U0001f600",
        [["[" * 100]],
        [0] * 1000,
    ):
        assert parse_json(json.dumps(data).encode(), 64) == data
    assert parse_json(rb'"\ud83d\ude00 \\ud800"', 64) == "\U0001f600 \\ud800"
    assert parse_json(b"[" * 64 + b"]" * 64, 64)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8", "application/vnd.api+json"])
def test_content_types_of_json_are_accepted(app: FastAPI, bearers: dict[str, str], kind: str) -> None:
    content = json.dumps({"version": 0})
    assert call(app, "POST", "/v1/rollback", bearers["admin"], content=content, headers={"Content-Type": kind}).is_success
