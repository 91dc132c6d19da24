"""Clients that never stop: what they count, and the gaps between the tokens of their streams."""

import time

import httpx
import pytest

from errata.client.errors import ErrataError
from errata.text.dialogue import Dialogue
from jobs.demo_traffic import Traffic, chat_events, gap_figures, swaps_of
from tests.fakes.chat_service import ChatService, serving_chat


def run(traffic: Traffic) -> None:
    """Let the clients run until four requests have ended."""
    with traffic.running():
        deadline = time.monotonic() + 20
        while traffic.num_requests < 4 and time.monotonic() < deadline:
            time.sleep(0.01)


def test_gaps_that_overlap_a_swap_are_a_figure_of_their_own() -> None:
    streams = [[0.0, 0.1, 0.2, 1.2], [5.0], [], [0.0, 0.1]]
    swaps = swaps_of([{"swap_at": 0.5, "swap_ms": 20.0}])
    assert swaps == [(0.5, 0.52)]
    figures = gap_figures(streams, swaps)
    assert figures["token_gap_ms_p50"] == pytest.approx(100.0, abs=0.2)
    assert figures["token_gap_ms_p99_at_swap"] == pytest.approx(1000.0) and figures["token_gaps_at_swap"] == 1


def test_no_gap_is_no_figure() -> None:
    figures = gap_figures([[1.0]], [(0.0, 2.0)])
    assert figures["token_gap_ms_p99"] is None and figures["token_gap_ms_p99_at_swap"] is None


def test_chats_are_streamed_until_the_block_ends() -> None:
    with serving_chat(ChatService({"a": "one two three"})) as url:
        traffic = Traffic(url, [Dialogue.of("a")], max_tokens=4)
        run(traffic)
    assert traffic.num_requests >= 4 and not traffic.failed
    assert traffic.num_requests == len(traffic.streams) and {len(times) for times in traffic.streams} == {3}
    assert traffic.num_unversioned == traffic.num_stale == traffic.num_mixed == 0


def test_an_answer_by_an_older_version_than_was_applied_is_counted() -> None:
    with serving_chat(ChatService({})) as url:
        traffic = Traffic(url, [Dialogue.of("a")], max_tokens=4, applied=1)
        run(traffic)
    assert 0 < traffic.num_stale == traffic.num_requests


def test_a_stream_that_breaks_off_fails() -> None:
    with serving_chat(ChatService({"cut": "one two"})) as url:
        with httpx.Client(base_url=url) as http, pytest.raises(ErrataError, match="ended before its last event"):
            list(chat_events(http, "errata", Dialogue.of("cut"), 4))
        traffic = Traffic(url, [Dialogue.of("cut")], max_tokens=4)
        run(traffic)
    assert 0 < traffic.num_requests == len(traffic.failed) and not traffic.streams


def test_a_service_that_is_away_is_a_failed_request() -> None:
    traffic = Traffic("http://127.0.0.1:9", [Dialogue.of("a"), "b"], max_tokens=4)
    run(traffic)
    assert 0 < traffic.num_requests == len(traffic.failed)
