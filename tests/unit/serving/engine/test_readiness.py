"""The times after which a replica that is behind is out of readiness, and is replaced."""

from __future__ import annotations

from serving.engine.readiness import OUT_AFTER_S, REPLACE_AFTER_S, Readiness, max_prepare_s


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(readiness: Readiness, clock: Clock, seconds: float, head: int = 2, version: int = 1, epoch: int = 1) -> None:
    for _ in range(round(seconds / 0.25)):
        clock.now += 0.25
        readiness.look(head, version, epoch)


def made(pause: str = "keep") -> tuple[Readiness, Clock]:
    clock = Clock()
    readiness = Readiness(pause, clock)  # type: ignore[arg-type]
    readiness.look(1, 1, 1)
    return readiness, clock


def test_a_replica_that_stays_behind_repairs_itself_then_is_out_then_is_replaced() -> None:
    readiness, clock = made()
    watched(readiness, clock, 0.5)
    assert not readiness.should_repair
    watched(readiness, clock, 0.5)
    assert readiness.should_repair and not readiness.is_out
    watched(readiness, clock, OUT_AFTER_S)
    assert readiness.is_out and readiness.fault() is None
    watched(readiness, clock, REPLACE_AFTER_S)
    assert readiness.fault() == "the ledger's head was another version for 36 s"
    watched(readiness, clock, 0.25, head=2, version=2)
    assert not readiness.is_out and readiness.fault() is None


def test_failed_swaps_do_not_reset_the_time_behind() -> None:
    readiness, clock = made()
    for _ in range(40):
        watched(readiness, clock, 1.0)
        readiness.swap_begins()
        watched(readiness, clock, 0.25)
        assert not readiness.should_repair
        readiness.swap_ends()
    assert readiness.is_out and readiness.fault() is not None


def test_a_replica_that_keeps_swapping_is_not_behind_although_edits_never_stop() -> None:
    readiness, clock = made()
    for epoch in range(100):
        watched(readiness, clock, 0.5, head=epoch + 1, version=epoch, epoch=epoch)
    assert not readiness.should_repair


def test_a_hanging_swap_is_out_and_one_that_waits_for_long_answers_is_not() -> None:
    for pause, is_out in (("keep", True), ("wait", False)):
        readiness, clock = made(pause)
        readiness.swap_begins()
        watched(readiness, clock, 59)
        assert (readiness.is_out, readiness.fault()) == (is_out, None)
        watched(readiness, clock, 2)
        assert (readiness.fault() is not None) == is_out
    watched(readiness, clock, 540)
    assert readiness.fault() == "a swap has been under way for 601 s"


def test_the_limit_of_a_preparation_grows_with_the_chain() -> None:
    """Forty versions of five matrices take 48 s at 0.24 s each on a core of their own."""
    max_s = max_prepare_s(200, 280 * 2**20)
    assert 5 * 48 < max_s < 600
    readiness, clock = made()
    readiness.prepare_begins(max_s)
    watched(readiness, clock, max_s - 1)
    assert (readiness.is_out, readiness.should_repair, readiness.behind_s, readiness.fault()) == (False, False, 0.0, None)
    watched(readiness, clock, 2)
    assert str(readiness.fault()).startswith(f"an update has been read for {max_s + 1:.0f} s")
    readiness.swap_begins()
    assert readiness.fault() is None
    watched(readiness, clock, OUT_AFTER_S + 1)
    assert readiness.is_out
    readiness.swap_ends()
    assert not readiness.is_out


def test_a_refused_preparation_does_not_reset_the_time_behind() -> None:
    readiness, clock = made()
    watched(readiness, clock, OUT_AFTER_S + 1)
    readiness.prepare_begins(100)
    assert readiness.is_out
    readiness.swap_ends()
    assert readiness.is_out and readiness.should_repair
