"""The search for rows near a vector: it finds what a full search finds, whatever the rows, thresholds and blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from errata.edit_memory import nearest
from errata.edit_memory.nearest import MIN_ROWS, SLACK, KeyTable
from errata.edit_memory.question_index import IndexedRecord, IndexedWording, QuestionIndex

NUM_DIMENSIONS = 384
GENERATOR = torch.Generator().manual_seed(0)


def drawn(count: int) -> Tensor:
    return normalize(torch.randn(count, NUM_DIMENSIONS, generator=GENERATOR))


def clustered(count: int) -> Tensor:
    """Return rows in which few dimensions matter, as in those of sentences: copies of 40 rows that differ a little."""
    scale_E = 0.97 ** torch.arange(NUM_DIMENSIONS)
    centre = normalize(drawn(40) * scale_E)[torch.arange(count) % 40]
    return normalize(centre + 0.6 * normalize(drawn(count) * scale_E))


def in_full(key_NE: Tensor, threshold_N: Tensor, vector_E: Tensor) -> list[tuple[int, float, float]]:
    """Compare a vector with each row, one after the other."""
    cosine_N = (key_NE.double() * vector_E.double()).sum(1)
    pairs = enumerate(zip(cosine_N.tolist(), threshold_N.tolist(), strict=True))
    return [(row, cosine, least) for row, (cosine, least) in pairs if cosine >= least]


def check_equal(found: Iterable[tuple[int, float, float]], expected: list[tuple[int, float, float]]) -> None:
    rows = list(found)
    assert [(row, least) for row, _, least in rows] == [(row, least) for row, _, least in expected]
    assert [cosine for _, cosine, _ in rows] == pytest.approx([cosine for _, cosine, _ in expected], abs=1e-12)


@pytest.mark.parametrize("make", [drawn, clustered])
@pytest.mark.parametrize("least", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("count", [1, 40, MIN_ROWS, 3 * MIN_ROWS])
def test_the_rows_are_those_of_a_full_search(make: Callable[[int], Tensor], least: float, count: int) -> None:
    key_NE = make(count)
    threshold_N = least + 0.1 * torch.rand(count, generator=GENERATOR)
    table = KeyTable.of(key_NE, threshold_N)
    assert (table.rotation is not None) == (count >= MIN_ROWS)
    asked = [key_NE[0], key_NE[-1], *normalize(key_NE[:8] + 0.3 * drawn(8)[: len(key_NE[:8])]), *drawn(4)]
    for vector_E in asked:
        check_equal(table.reached(vector_E), in_full(key_NE, threshold_N, vector_E))
    assert next(table.reached(asked[0]))[0] == 0


def test_the_bound_leaves_out_most_rows_and_none_that_reaches_its_threshold() -> None:
    key_NE = clustered(3 * MIN_ROWS)
    rotation = KeyTable.of(key_NE, torch.full((len(key_NE),), 0.8)).rotation
    assert rotation is not None
    for vector_E in normalize(key_NE[::200] + 0.3 * normalize(drawn(len(key_NE[::200])))):
        bound_N, cosine_N = rotation.bound(vector_E), key_NE.double() @ vector_E.double()
        assert bool((bound_N + SLACK >= cosine_N).all())
        assert float((bound_N >= 0.8 - SLACK).float().mean()) < 0.1


def test_a_rotation_of_vectors_that_fill_no_dimension_beyond_its_own_bounds_them_too() -> None:
    """All length is in the rotated dimensions, so that the rest is what rounding leaves of it."""
    key_NE = torch.zeros(MIN_ROWS, NUM_DIMENSIONS)
    key_NE[:, :20] = normalize(torch.randn(MIN_ROWS, 20, generator=GENERATOR))
    threshold_N = torch.full((MIN_ROWS,), 0.9999)
    assert [row for row, *_ in KeyTable.of(key_NE, threshold_N).reached(key_NE[7])] == [7]


def test_many_rows_within_the_bound_are_compared_in_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    key_NE, threshold_N = drawn(MIN_ROWS), torch.full((MIN_ROWS,), 0.1)
    table, vector_E = KeyTable.of(key_NE, threshold_N), drawn(1)[0]
    expected = in_full(key_NE, threshold_N, vector_E)
    assert len(expected) > 20
    for share in (0.0, 1.0):
        monkeypatch.setattr(nearest, "MAX_SHARE", share)
        check_equal(table.reached(vector_E), expected)


def test_an_index_finds_the_same_in_blocks_as_in_one() -> None:
    key_NE = clustered(MIN_ROWS + 300)
    records = [
        IndexedRecord((IndexedWording(str(i), str(i)),), (), key_E[None], torch.tensor([0.7])) for i, key_E in enumerate(key_NE)
    ]
    whole, grown = QuestionIndex().changed((), records), QuestionIndex()
    for begin, end in ((0, MIN_ROWS), (MIN_ROWS, MIN_ROWS + 200), (MIN_ROWS + 200, len(records))):
        grown = grown.changed((), records[begin:end])
    assert len(whole.blocks) == 1 < len(grown.blocks) and grown.blocks[0].table.rotation is not None
    for vector_E in key_NE[::300]:
        one, other = whole.near(vector_E), grown.near(vector_E)
        assert [wording for wording, *_ in one] == [wording for wording, *_ in other] != []
        assert [cosine for _, cosine, _ in one] == pytest.approx([cosine for _, cosine, _ in other], abs=1e-12)
