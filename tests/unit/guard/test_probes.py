"""Files of probes."""

from __future__ import annotations

import pytest

from errata.guard.probes import FILE, PLAIN, Probes


def test_probes_are_saved_and_loaded(tmp_path):
    probes = Probes(("a b", "c"), ("one two three", "four five"))
    probes.save(tmp_path / FILE)
    assert Probes.load(tmp_path / FILE) == probes == Probes.beside(tmp_path)
    assert Probes.beside(tmp_path / "elsewhere") == Probes((), PLAIN)
    assert Probes(tuple("abcdef"), ()).sample(3, 3) == Probes(("a", "c", "e"), ())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "line 1 is not JSON"),
        (b'{"prompt": "a"}\n["b"]', "line 2: a probe must be"),
        (b'{"question": "a"}', "a probe must be"),
        (b'{"prompt": " "}', "the prompt must be a string"),
        (b'{"sentence": 3}', "the sentence must be a string"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_bad_probe_is_named(tmp_path, content, says):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        Probes.load(tmp_path / FILE)
    with pytest.raises(ValueError, match="cannot be read"):
        Probes.load(tmp_path / "none.jsonl")
