"""How long a replica may be behind before it is turned away from, and before it is replaced."""

from __future__ import annotations

from serving.engine.readiness import OUT_AFTER_S, REPLACE_AFTER_S, Readiness, max_prepare_s


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(rotation: Readiness, clock: Clock, seconds: float, head: int = 2, version: int = 1, epoch: int = 1) -> None:
    for _ in range(round(seconds / 0.25)):
        clock.now += 0.25
        rotation.look(head, version, epoch)


def made(pause: str = "keep") -> tuple[Readiness, Clock]:
    clock = Clock()
    rotation = Readiness(pause, clock)  # type: ignore[arg-type]
    rotation.look(1, 1, 1)
    return rotation, clock


def test_who_stays_behind_repairs_itself_then_is_out_then_is_replaced() -> None:
    rotation, clock = made()
    watched(rotation, clock, 0.5)
    assert not rotation.should_repair
    watched(rotation, clock, 0.5)
    assert rotation.should_repair and not rotation.is_out
    watched(rotation, clock, OUT_AFTER_S)
    assert rotation.is_out and rotation.fault() is None
    watched(rotation, clock, REPLACE_AFTER_S)
    assert rotation.fault() == "the ledger's head was another version for 36 s"
    watched(rotation, clock, 0.25, head=2, version=2)
    assert not rotation.is_out and rotation.fault() is None


def test_swaps_that_fail_do_not_excuse_what_was_before_them() -> None:
    rotation, clock = made()
    for _ in range(40):
        watched(rotation, clock, 1.0)
        rotation.swap_begins()
        watched(rotation, clock, 0.25)
        assert not rotation.should_repair
        rotation.swap_ends()
    assert rotation.is_out and rotation.fault() is not None


def test_a_replica_that_gets_on_is_not_behind_though_edits_never_stop() -> None:
    rotation, clock = made()
    for epoch in range(100):
        watched(rotation, clock, 0.5, head=epoch + 1, version=epoch, epoch=epoch)
    assert not rotation.should_repair


def test_a_swap_that_hangs_is_out_and_one_that_waits_for_long_answers_is_not() -> None:
    for pause, is_out in (("keep", True), ("wait", False)):
        rotation, clock = made(pause)
        rotation.swap_begins()
        watched(rotation, clock, 59)
        assert (rotation.is_out, rotation.fault()) == (is_out, None)
        watched(rotation, clock, 2)
        assert (rotation.fault() is not None) == is_out
    watched(rotation, clock, 540)
    assert rotation.fault() == "a swap has been under way for 601 s"


def test_a_long_chain_may_be_read_for_long_and_not_for_ever() -> None:
    """Forty versions of five matrices: at 0.24 s each they take 48 s on a core of its own."""
    max_s = max_prepare_s(200, 280 * 2**20)
    assert 5 * 48 < max_s < 600
    rotation, clock = made()
    rotation.prepare_begins(max_s)
    watched(rotation, clock, max_s - 1)
    assert (rotation.is_out, rotation.should_repair, rotation.behind_s, rotation.fault()) == (False, False, 0.0, None)
    watched(rotation, clock, 2)
    assert str(rotation.fault()).startswith(f"an update has been read for {max_s + 1:.0f} s")
    rotation.swap_begins()
    assert rotation.fault() is None
    watched(rotation, clock, OUT_AFTER_S + 1)
    assert rotation.is_out
    rotation.swap_ends()
    assert not rotation.is_out


def test_what_is_read_and_refused_excuses_nothing_that_was_before_it() -> None:
    rotation, clock = made()
    watched(rotation, clock, OUT_AFTER_S + 1)
    rotation.prepare_begins(100)
    assert rotation.is_out
    rotation.swap_ends()
    assert rotation.is_out and rotation.should_repair
