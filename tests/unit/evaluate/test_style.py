"""Style drift of answers, on a model whose probabilities are a table."""

import math

import pytest

from errata.evaluate.style import style_of
from errata.text.dialogue import Prompt
from tests.unit.evaluate.toy_model import UNEDITED, toy


def test_length_and_likelihood_are_means_over_answers() -> None:
    # p(rome | seat) is 1/2; p(blue | river) p(nile | blue) is 1/4 * 1/2, two tokens.
    answers: dict[Prompt, str] = {"seat": "rome", "river": "blue nile"}
    style = style_of(toy(UNEDITED), answers)
    assert style.length == 1.5
    one_by_one = style_of(toy(UNEDITED), answers, batch_size=1)
    assert (one_by_one.length, one_by_one.nll) == (1.5, pytest.approx(style.nll))
    assert style.nll == pytest.approx((math.log(2) + (math.log(4) + math.log(2)) / 2) / 2, abs=1e-4)


def test_an_empty_answer_has_no_length_and_no_likelihood() -> None:
    style = style_of(toy(UNEDITED), {"seat": "rome", "river": " "})
    assert (style.length, style.nll) == (0.5, pytest.approx(math.log(2), abs=1e-4))
    with pytest.raises(ValueError, match="at least one that is not empty"):
        style_of(toy(UNEDITED), {"seat": ""})
