"""The sample of earlier edits."""

from __future__ import annotations

from errata.edit import Edit
from errata.guard.edit_sample import Sample


def test_a_sample_does_not_depend_on_the_batches():
    edits = [Edit(f"prompt {i}", "x") for i in range(100)]
    whole, parts = Sample(10, 0), Sample(10, 0)
    whole.add(edits)
    for i in range(0, 100, 7):
        parts.add(edits[i : i + 7])
    assert {e.prompt for e in whole} == {e.prompt for e in parts} and len(list(whole)) == 10
    assert {e.prompt for e in whole} != {e.prompt for e in _sampled(edits, seed=1)}
    newer = Edit(next(iter(whole)).prompt, "newer")
    whole.add([newer])
    assert newer in list(whole) and len(list(whole)) == 10


def _sampled(edits, seed):
    sample = Sample(10, seed)
    sample.add(edits)
    return sample
