"""Time by stage."""

import threading

import pytest

from errata.timing import stage_seconds, timed


def test_time_is_counted_by_stage_only_while_it_is_measured() -> None:
    @timed("work")
    def work() -> int:
        return threading.active_count()

    work()
    with stage_seconds() as seconds:
        work()
        work()
        with pytest.raises(KeyError), timed("failing"):
            raise KeyError
    assert set(seconds) == {"work", "failing", "total"} and seconds["total"] >= seconds["work"] > 0
    with stage_seconds() as other:
        pass
    assert set(other) == {"total"}
