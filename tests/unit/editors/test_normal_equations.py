"""Edits taken out of normal equations, against a naive solve of the rows that stay, in fp64 and with explicit inverses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from errata.delta.parts import Dense, LowRank
from errata.delta.weight_delta import WeightDelta
from errata.edit import Code, Edit, EditBatch, EditRejected
from errata.editors.normal_equations import Call, NormalEquations
from errata.editors.past_keys import next_state, preconditioners_for
from errata.editors.solve import KeyGram
from errata.editors.state import EditorState

I, O, MATRIX = 24, 10, "matrix"  # noqa: E741


@dataclass(frozen=True)
class Problem:
    """Batches of rows for one matrix: each edit has two keys, and either a wanted output or a wanted change of it."""

    ridge: float = 1.0
    weight: float = 1.0
    has_metric: bool = True
    is_recovered: bool = False
    fixes: str = "outputs"
    num_passes: int = 1
    same_prompts: tuple[tuple[int, int], ...] = ()

    @property
    def base_II(self) -> Tensor:
        root_II = torch.randn(I, 2 * I, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        return torch.linalg.inv(0.3 * root_II @ root_II.T / I + torch.eye(I, dtype=torch.float64))

    @property
    def edits(self) -> list[Edit]:
        names = list(range(12))
        for later, earlier in self.same_prompts:
            names[later] = earlier
        return [Edit(f"prompt {name}", f"target {i}", id=f"e{i}") for i, name in enumerate(names)]

    @property
    def batches(self) -> list[list[int]]:
        return [[0, 1, 2], [3, 4], [5, 6, 7, 8], [9, 10, 11]]

    def rows(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the keys and the wanted outputs, or changes, of an edit."""
        name = int(self.edits[index].prompt.split()[-1])
        keys_2I = torch.randn(2, I, generator=torch.Generator().manual_seed(name))
        wanted_2O = torch.randn(2, O, generator=torch.Generator().manual_seed(100 + index))
        return keys_2I, wanted_2O

    def equations(self) -> NormalEquations:
        bases = {MATRIX: self.base_II} if self.has_metric else {}
        return NormalEquations(
            {MATRIX: torch.tensor(math.log(self.ridge))},
            {MATRIX: MATRIX},
            self.weight,
            lambda: bases,
            lambda batch: [edit for edit in batch for _ in range(2)],
            frozenset({MATRIX} if self.is_recovered else ()),
            "outputs" if self.fixes == "outputs" else "changes",
        )

    def made(self) -> tuple[list[LowRank], EditorState]:
        """Make all batches as an editor does, on a matrix of zeros."""
        equations, state = self.equations(), EditorState()
        parts, weight_OI = [], torch.zeros(O, I, dtype=torch.float64)
        for index in self.batches:
            batch = EditBatch(tuple(self.edits[i] for i in index))
            keys_nI, wanted_nO = (torch.cat(rows) for rows in zip(*map(self.rows, index), strict=True))
            P = preconditioners_for(batch, state, equations.bases, self.weight)
            gram = KeyGram.of(keys_nI, P.get(MATRIX))
            passes: list[LowRank] = []
            for _ in range(self.num_passes):
                said_nO = keys_nI.double() @ weight_OI.T if self.fixes == "outputs" else 0.0
                Z_nO = gram.solve(wanted_nO.double() - said_nO, equations.log_ridges[MATRIX])
                passes.append(LowRank(Z_nO.T, gram.V_nI.T))
                weight_OI = weight_OI + passes[-1].dense().double()
            parts.append(LowRank(*(torch.cat([getattr(one, name) for one in passes], 1) for name in ("U_OR", "V_IR"))))
            keys = {MATRIX: keys_nI} if self.has_metric else {}
            state = next_state(state, list(equations.edits_of_rows(batch)), P, keys, self.weight, num_edits=len(batch))
        return parts, state

    def calls(self, parts: Sequence[LowRank], gone: set[int]) -> list[Call]:
        found = []
        for index, part in zip(self.batches, parts, strict=True):
            made = [self.edits[i] for i in index], [self.edits[i] for i in index if i not in gone]
            found += self.equations().calls({MATRIX: part}, [made])
        return found

    def naive(self, gone: set[int]) -> Tensor:
        """Solve the sequence of the edits that stay: explicit inverses, in fp64, and the wanted rows as they were."""
        weight_OI, past = torch.zeros(O, I, dtype=torch.float64), dict[str, Tensor]()
        base_II = torch.linalg.inv(self.base_II) if self.has_metric else torch.eye(I, dtype=torch.float64)
        for index in self.batches:
            stay = [i for i in index if i not in gone]
            for prompt in {self.edits[i].prompt for i in stay}:
                past.pop(prompt, None)
            if not stay:
                continue
            keys_nI, wanted_nO = (torch.cat(rows).double() for rows in zip(*map(self.rows, stay), strict=True))
            P_II = torch.linalg.inv(base_II + self.weight * sum((k.T @ k for k in past.values()), torch.zeros(I, I)))
            missing_nO = wanted_nO - keys_nI @ weight_OI.T if self.fixes == "outputs" else wanted_nO
            system_nn = keys_nI @ P_II @ keys_nI.T + self.ridge * torch.eye(len(keys_nI))
            weight_OI = weight_OI + (torch.linalg.inv(system_nn) @ missing_nO).T @ keys_nI @ P_II
            if self.has_metric:
                past |= {self.edits[i].prompt: self.rows(i)[0].double() for i in stay}
        return weight_OI


def dense(deltas: Sequence[WeightDelta]) -> Tensor:
    return torch.stack([delta.parts[MATRIX].dense().double() for delta in deltas if delta.parts]).sum(0)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


PROBLEMS = {
    "one ridge": Problem(),
    "another ridge and weight": Problem(ridge=0.3, weight=0.5),
    "changes": Problem(ridge=0.1, fixes="changes"),
    "keys from factors": Problem(weight=0.0, is_recovered=True),
    "keys from factors beside past keys": Problem(ridge=0.5, is_recovered=True),
    "no metric": Problem(ridge=2.0, has_metric=False, is_recovered=True),
    "a corrected edit": Problem(same_prompts=((6, 1), (10, 6))),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("gone", [{1}, {0, 1, 2}, {2, 3, 6, 11}, {6}, {9, 10, 11}, set(range(12))], ids=str)
def test_what_stays_is_the_solution_of_the_rows_that_stay(name: str, gone: set[int]) -> None:
    problem = PROBLEMS[name]
    parts, after = problem.made()
    deltas, state = problem.equations().without(problem.calls(parts, gone), EditorState(), after)
    assert [bool(delta.parts) for delta in deltas] == [bool(set(index) - gone) for index in problem.batches]
    if gone == set(range(12)):
        assert state.num_edits == 0 and not state.tensors
        return
    assert distance(dense(deltas), problem.naive(gone)) < 1e-5
    assert distance(dense([WeightDelta({MATRIX: part}) for part in parts]), problem.naive(gone)) > 1e-2
    assert state.num_edits == 12 - len(gone)


def test_the_sequence_is_one_ridge_regression_and_its_sums_are_down_dated() -> None:
    problem, gone = Problem(), {1, 4, 5}
    parts, after = problem.made()
    keys_mI, wanted_mO = (torch.cat(rows).double() for rows in zip(*map(problem.rows, range(12)), strict=True))
    A_OI, inverse_II = wanted_mO.T @ keys_mI, torch.linalg.inv(problem.base_II) + keys_mI.T @ keys_mI
    assert distance(dense([WeightDelta({MATRIX: part}) for part in parts]), A_OI @ torch.linalg.inv(inverse_II)) < 1e-5
    for i in gone:
        keys_2I, wanted_2O = (rows.double() for rows in problem.rows(i))
        A_OI, inverse_II = A_OI - wanted_2O.T @ keys_2I, inverse_II - keys_2I.T @ keys_2I
    deltas, state = problem.equations().without(problem.calls(parts, gone), EditorState(), after)
    assert distance(dense(deltas), A_OI @ torch.linalg.inv(inverse_II)) < 1e-5
    P = state.derived["preconditioners"][MATRIX]
    assert distance(P.apply(torch.eye(I)), torch.linalg.inv(inverse_II)) < 1e-8


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_state_is_that_of_the_edits_that_stay(name: str) -> None:
    """Its rows have the same bits, also when a corrected edit counts again because its correction is gone."""
    problem, gone = PROBLEMS[name], {2, 6, 10}
    parts, after = problem.made()
    _, state = problem.equations().without(problem.calls(parts, gone), EditorState(), after)
    equations, never = problem.equations(), EditorState()
    for index in problem.batches:
        batch = EditBatch(tuple(problem.edits[i] for i in index if i not in gone))
        keys = {MATRIX: torch.cat([problem.rows(i)[0] for i in index if i not in gone])} if problem.has_metric else {}
        P = preconditioners_for(batch, never, equations.bases, problem.weight)
        never = next_state(never, list(equations.edits_of_rows(batch)), P, keys, problem.weight, num_edits=len(batch))
    assert state.num_edits == never.num_edits == 9 and state.tensors.keys() == never.tensors.keys()
    assert all(torch.equal(state.tensors[name], never.tensors[name]) for name in never.tensors)
    mine, theirs = (one.derived.get("preconditioners", {}) for one in (state, never))
    assert mine.keys() == theirs.keys()
    assert all(distance(mine[name].apply(torch.eye(I)), theirs[name].apply(torch.eye(I))) < 1e-10 for name in mine)


def test_several_passes_at_the_same_keys_are_one_solve() -> None:
    problem, gone = Problem(ridge=4.0, num_passes=3), {9}
    parts, after = problem.made()
    assert [part.rank for part in parts] == [18, 12, 24, 18]
    calls = problem.calls(parts, gone)
    assert [call.factors[MATRIX].rank for call in calls] == [6, 4, 8, 6]
    deltas, _ = problem.equations().without(calls, EditorState(), after)
    assert torch.allclose(dense(deltas[:3]), dense([WeightDelta({MATRIX: part}) for part in parts[:3]]), atol=1e-5)
    keys_nI = torch.cat([problem.rows(i)[0] for i in problem.batches[3]]).double()
    past_mI = torch.cat([problem.rows(i)[0] for i in range(9)]).double()
    P_II = torch.linalg.inv(torch.linalg.inv(problem.base_II) + past_mI.T @ past_mI)
    system_nn = keys_nI @ P_II @ keys_nI.T + 4.0 * torch.eye(6)
    in_sum_nO = (system_nn @ calls[3].factors[MATRIX].U_OR.T.double())[2:]
    wanted_OI = torch.linalg.solve(system_nn[2:, 2:], in_sum_nO).T @ keys_nI[2:] @ P_II
    assert distance(dense(deltas[3:]), wanted_OI) < 1e-5


def test_two_calls_of_one_version_are_separated() -> None:
    """An edit that was made again is a call of its own, whose rows stand behind those of the first."""
    problem = Problem()
    parts, _ = problem.made()
    joined = LowRank(*(torch.cat([getattr(part, name) for part in parts[:2]], 1) for name in ("U_OR", "V_IR")))
    made = [(problem.edits[:3], problem.edits[1:3]), (problem.edits[3:5], [])]
    calls = problem.equations().calls({MATRIX: joined}, made)
    assert [(call.edits, call.stay) for call in calls] == [tuple(map(tuple, one)) for one in made]
    for call, part in zip(calls, parts[:2], strict=True):
        assert torch.equal(call.factors[MATRIX].U_OR, part.U_OR) and torch.equal(call.factors[MATRIX].V_IR, part.V_IR)


def refusal_of(problem: Problem, parts: Sequence[LowRank | Dense], after: EditorState, before: EditorState) -> str:
    with pytest.raises(EditRejected) as caught:
        calls = []
        for index, part in zip(problem.batches, parts, strict=True):
            own = [problem.edits[i] for i in index]
            calls += problem.equations().calls({MATRIX: part}, [(own, own[1:])])
        problem.equations().without(calls, before, after)
    assert caught.value.code is Code.NOT_ADDITIVE
    return caught.value.reason


def test_what_is_not_in_this_form_is_refused() -> None:
    problem = Problem()
    parts, after = problem.made()
    none = EditorState()
    assert "one factor for each of the rows" in refusal_of(problem, [Dense(part.dense()) for part in parts], after, none)
    fewer = [LowRank(part.U_OR[:, 1:], part.V_IR[:, 1:]) for part in parts]
    assert "one factor for each of the rows" in refusal_of(problem, fewer, after, none)
    turned = [LowRank(part.U_OR, part.V_IR.flip(1)) for part in parts]
    assert "not those of the keys in the state" in refusal_of(problem, turned, after, none)
    assert "does not hold the keys of these edits" in refusal_of(problem, parts, after, after)
    assert "does not hold the keys of these edits" in refusal_of(problem, parts, none, none)
    drifted = Problem(num_passes=2).made()[0]
    moved = [LowRank(p.U_OR, torch.cat([p.V_IR[:, : p.rank // 2], 2 * p.V_IR[:, p.rank // 2 :]], 1)) for p in drifted]
    assert "several passes at different keys" in refusal_of(problem, moved, after, none)
