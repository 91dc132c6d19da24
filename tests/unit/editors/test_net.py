"""The hypernetwork batches matrices of one shape; the proposal for one does not depend on the others."""

from __future__ import annotations

import pytest
import torch

from errata.edit import EditRejected
from errata.editors.hypernet import net as net_module
from errata.editors.hypernet.net import NETWORKS, Hypernetwork, Network, Proposal, Rule
from errata.editors.past_keys import with_keys
from errata.editors.solve import KeyPreconditioner, base_preconditioner
from errata.model.capture import Captured
from errata.model.matrices import MatrixSpec, ModelSpec
from errata.timing import stage_seconds

SIZES = {"gate_proj": (12, 20), "up_proj": (12, 20), "down_proj": (20, 12)}
SPEC = ModelSpec(tuple(MatrixSpec(f"layers.{layer}.mlp.{name}", *size) for layer in range(3) for name, size in SIZES.items()))


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_net(rule: Rule, network: Network = "full") -> Hypernetwork:
    net = Hypernetwork(SPEC, rank=4, num_blocks=2, centred=False, seed=0, rule=rule, network=network)
    for i, parameter in enumerate(net.parameters()):  # Not the identity, and different for each matrix.
        parameter.data += 0.3 * randn(*parameter.shape, seed=i)
    return net


def rows(num_rows: dict[str, int]) -> dict[str, Captured]:
    found: dict[str, Captured] = {}
    for i, matrix in enumerate(SPEC.matrices):
        n = num_rows.get(matrix.name, 5)
        gate = found.get(matrix.name.replace("up_proj", "gate_proj"))
        keys_TI = gate.keys_TI if gate is not None else randn(n, matrix.num_in, seed=100 + i)
        found[matrix.name] = Captured(keys_TI, randn(n, matrix.num_out, seed=200 + i))
    return found


def preconditioners() -> dict[str, KeyPreconditioner]:
    moments = {m.name: randn(40, m.num_in, seed=300 + i) for i, m in enumerate(SPEC.matrices) if "up_proj" not in m.name}
    return {name: KeyPreconditioner.start(base_preconditioner(x.T @ x, 1.0)) for name, x in moments.items()}


def gradients(net: Hypernetwork, proposals: dict[str, Proposal]) -> list[torch.Tensor]:
    loss = sum((p.Z_nO.square().sum() + p.V_nI.square().sum()) * (1 + i) for i, p in enumerate(proposals.values()))
    return list(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("rows_at_once", [1, 10, 1000])
@pytest.mark.parametrize("rule", ["solve", "outer"])
def test_the_proposal_for_a_matrix_does_not_depend_on_the_others(
    rule: Rule, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net_module, "ROWS_AT_ONCE", rows_at_once)
    net = a_net(rule)
    captured = rows({"layers.1.mlp.down_proj": 3, "layers.2.mlp.down_proj": 8} if rule == "outer" else {})
    together = net.propose(captured, preconditioners())
    alone: dict[str, Proposal] = {}
    for name, own in captured.items():
        alone |= net.propose({name: own}, preconditioners())
    assert list(together) == list(alone) == list(SPEC.names)
    for name, one in together.items():
        assert len(one.V_nI) == len(one.Z_nO) == len(captured[name].keys_TI)
        torch.testing.assert_close((one.V_nI, one.Z_nO), (alone[name].V_nI, alone[name].Z_nO))
    torch.testing.assert_close(gradients(net, together), gradients(net, alone), rtol=1e-4, atol=1e-4)


def test_passes_over_the_same_keys_share_the_inverses() -> None:
    net, captured, shared = a_net("solve"), rows({}), {}
    with torch.no_grad():
        first = net.propose(captured, preconditioners(), shared)
        kept = {name: dict(found.inverses) for name, found in shared.items()}
        second = net.propose(captured, preconditioners(), shared)
    assert sum(map(len, kept.values())) == len(SPEC.matrices) and len(kept) == len(preconditioners())
    assert all(shared[name].inverses[ridge] is inverse for name, found in kept.items() for ridge, inverse in found.items())
    for name in first:
        assert torch.equal(first[name].Z_nO, second[name].Z_nO)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_begins_at_the_identity(network: Network) -> None:
    net, captured = Hypernetwork(SPEC, 4, 2, False, 0, network=network), rows({})
    net.observe(captured)
    for shape_net in net._each_net():
        for group, index_m in shape_net.groups(captured):
            made = shape_net(group, index_m)
            first_mnF = torch.stack([shape_net.normaliser(torch.cat([r.keys_TI, r.grads_TO], 1)) for r in group.values()])
            assert torch.equal(torch.cat([made.pseudo_mnI, made.g_mnO], 2), first_mnF)
            assert (made.departure_mn is None) == (network != "residual")
            assert made.departure_mn is None or not made.departure_mn.any()
    trained = {name.rpartition(".")[2] for name, _ in net.named_parameters()}
    assert (trained == {"log_step_M", "log_ridge_M"}) == (network == "identity")


def test_a_residual_network_has_a_step_for_each_row_and_leaves_the_keys() -> None:
    """The gradients of a row are those of the identity times a factor between 1/8 and 8, as long as f is zero."""
    net = Hypernetwork(SPEC, 4, 2, False, 0, network="residual")
    captured = rows({})
    for shape_net in net._each_net():
        shape_net.head_F.data.copy_(3 * randn(len(shape_net.head_F), seed=1))
        for group, index_m in shape_net.groups(captured):
            made = shape_net(group, index_m)
            assert torch.equal(made.pseudo_mnI, made.k_mnI)  # The normaliser has seen nothing, and changes nothing.
            factor_mnO = made.g_mnO / torch.stack([r.grads_TO for r in group.values()])
            assert (factor_mnO.amin(2) - factor_mnO.amax(2)).abs().max() < 1e-4
            factor_mn = factor_mnO.mean(2)
            assert factor_mn.min() >= 1 / 8.01 and factor_mn.max() <= 8.01 and factor_mn.std() > 0.5
            torch.testing.assert_close(made.departure_mn, factor_mn.log().square())


def test_the_departure_of_a_matrix_is_that_of_its_own_rows() -> None:
    net = a_net("outer", "residual")
    captured = rows({"layers.1.mlp.down_proj": 3, "layers.2.mlp.down_proj": 8})
    together = net.propose(captured, {})
    for name, own in captured.items():
        alone = net.propose({name: own}, {})[name].departure
        assert alone is not None and float(alone.detach()) > 0
        torch.testing.assert_close(together[name].departure, alone)
    assert all(proposal.departure is None for proposal in a_net("outer").propose(captured, {}).values())


def test_one_matrix_without_a_solution_refuses_the_batch() -> None:
    net, captured = a_net("solve"), rows({})
    captured["layers.1.mlp.down_proj"].keys_TI.mul_(float("nan"))
    with pytest.raises(EditRejected, match="no solution"):
        net.propose(captured, preconditioners())


def test_the_network_is_a_stage_of_its_own() -> None:
    with stage_seconds() as seconds:
        a_net("solve").propose(rows({}), preconditioners())
    assert 0 < seconds["network"] < seconds["total"]


def test_preconditioners_remember_together_as_alone() -> None:
    before = preconditioners()
    keys = {name: own.keys_TI for name, own in rows({"layers.1.mlp.down_proj": 3}).items() if name in before}
    after = with_keys(before, keys, 0.5)
    assert list(after) == list(before)
    for name, one in before.items():
        torch.testing.assert_close(after[name].whitened_mI, one.remember(keys[name], 0.5).whitened_mI)
    assert with_keys(before, {}, 0.0) == before
