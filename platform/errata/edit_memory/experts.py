"""Experts: low-rank branches beside matrices, which are mixed at tokens whose state has the code of a record.

All records share the experts: tensors of the bank, by the name of the matrix. A token is decided by itself, from the input of
the bank's site, the first of these matrices, which no expert changes; other tokens keep their bits.
T tokens, F tokens with the code of a record, I in-features, O out-features, X in-features of the site, E experts of a matrix,
R rank, C bits of a code, N rows of the bank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from errata.edit_memory.bank import Bank
from errata.edit_memory.lookup import NONE, Fired, unit

SEED = "errata.experts"  # of the hyperplanes; another one would be another code
CENTRE, CHOSEN = "centre", "num_chosen"  # Shared tensors that are of no matrix.


class Experts(NamedTuple):
    """The experts of one matrix, and the router that weighs them by the site's input."""

    down_ERI: Tensor
    up_EOR: Tensor
    router_EX: Tensor
    bias_E: Tensor

    def on(self, device: torch.device) -> Experts:
        return Experts(*(tensor.to(device) for tensor in self))

    def shares(self, input_FX: Tensor) -> Tensor:
        """Return the router's share of each expert, which sum to 1, [F, E]."""
        return (input_FX @ self.router_EX.T + self.bias_E).softmax(1)

    def change(self, input_FX: Tensor, value_FI: Tensor, num_chosen: int) -> Tensor:
        """Return the sum over the `num_chosen` experts with the largest shares of s U D v, [F, O]."""
        share_Fk, chosen_Fk = self.shares(input_FX).topk(num_chosen, dim=1)
        share_FE = share_Fk.new_zeros(len(share_Fk), len(self.bias_E)).scatter(1, chosen_Fk, share_Fk)
        narrow_FER = torch.einsum("fi,eri->fer", value_FI, self.down_ERI)
        return torch.einsum("fer,eor->fo", narrow_FER * share_FE[:, :, None], self.up_EOR)


def experts_of(shared: Mapping[str, Tensor]) -> dict[str, Experts]:
    """Return the experts of each matrix by its name, from the shared tensors of a bank, which are sound."""
    names = dict.fromkeys(name.partition("|")[0] for name in shared if "|" in name)
    return {name: Experts(*(shared[f"{name}|{part}"] for part in Experts._fields)) for name in names}


def check_shared(site: str, shared: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` for tensors that are no experts, as those of a damaged file may be."""
    names = {name.partition("|")[0] for name in shared if "|" in name}
    wanted = {CENTRE, CHOSEN, *(f"{name}|{part}" for name in names for part in Experts._fields)}
    if not names or shared.keys() != wanted or site not in names:
        raise ValueError(f"the shared tensors of the memory are not those of experts at {site}")
    num_x, num_chosen = shared[CENTRE].numel(), shared[CHOSEN].numel()
    for name, one in experts_of(shared).items():
        num_e, num_r = one.down_ERI.shape[0], one.down_ERI.shape[1]
        fits = one.down_ERI.dim() == one.up_EOR.dim() == 3 and one.up_EOR.shape[::2] == (num_e, num_r)
        if not fits or one.router_EX.shape != (num_e, num_x) or one.bias_E.shape != (num_e,) or num_chosen != 1:
            raise ValueError(f"the experts of {name} do not fit each other")
        if not 1 <= int(shared[CHOSEN]) <= num_e:
            raise ValueError(f"the memory mixes {int(shared[CHOSEN])} of {num_e} experts of {name}")


def check_matrices(site: str, shared: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise `ValueError` for experts of matrices that a model with such editable ones, [O, I] each, does not have."""
    for name, one in experts_of(shared).items():
        own = one.up_EOR.shape[1], one.down_ERI.shape[2]
        if shapes.get(name) != own:
            raise ValueError(f"the memory has experts of {name} as a matrix of {own}, and the model's is {shapes.get(name)}")
    if shapes[site][1] != len(shared[CENTRE]):
        raise ValueError(f"the memory reads {len(shared[CENTRE])} inputs of {site}, which has {shapes[site][1]}")


def shared_of(experts: Mapping[str, Experts], centre_X: Tensor, num_chosen: int) -> dict[str, Tensor]:
    """Return the shared tensors of a bank; the opposite of `experts_of`."""
    parts = ((f"{name}|{part}", tensor) for name, one in experts.items() for part, tensor in one._asdict().items())
    return {CENTRE: centre_X, CHOSEN: torch.tensor([num_chosen])} | dict(parts)


@cache
def hyperplanes(num_bits: int, num_in: int, device: torch.device) -> Tensor:
    """Return the hyperplanes of a code as rows of -1 and 1, the same on every machine, [C, X]."""
    digest = hashlib.shake_256(SEED.encode()).digest(-(-num_bits * num_in // 8))
    bits = unpacked(torch.frombuffer(bytearray(digest), dtype=torch.uint8))[: num_bits * num_in]
    return bits.view(num_bits, num_in).to(device)


def signs(input_TX: Tensor, centre_X: Tensor, num_bits: int) -> Tensor:
    """Return the codes of states as -1 and 1: on which side of each hyperplane through the centre they lie, [T, C]."""
    side_TC = (unit(input_TX) - centre_X) @ hyperplanes(num_bits, input_TX.shape[1], input_TX.device).T
    return torch.where(side_TC >= 0, 1.0, -1.0)


def packed(sign_TC: Tensor) -> Tensor:
    """Return codes as bytes, the first bit of each the lowest, [T, C / 8]."""
    weight_8 = 2 ** torch.arange(8, device=sign_TC.device)
    return ((sign_TC.unflatten(1, (-1, 8)) > 0) * weight_8).sum(2).to(torch.uint8)


def unpacked(byte_n: Tensor) -> Tensor:
    """Return the bits of bytes as -1 and 1, eight times as many in the last dimension."""
    bits = byte_n[..., None] >> torch.arange(8, dtype=torch.uint8, device=byte_n.device) & 1
    return bits.flatten(-2).float() * 2 - 1


def distances(sign_TC: Tensor, key_NC: Tensor) -> Tensor:
    """Return the number of bits in which codes differ, exactly, [T, N]."""
    return (sign_TC.shape[1] - sign_TC @ key_NC.T) / 2


def nearest(sign_TC: Tensor, key_NC: Tensor, radius_N: Tensor) -> Fired:
    """Return the row at each token whose code is nearest and within the row's radius, and the share of bits that are alike."""
    apart_TN = distances(sign_TC, key_NC)
    apart_T, row_T = apart_TN.masked_fill(apart_TN > radius_N, torch.inf).min(1)
    return Fired(torch.where(torch.isfinite(apart_T), row_T, NONE), 1 - apart_TN.amin(1) / sign_TC.shape[1])


class ExpertsPlace(NamedTuple):
    """The place of a matrix in a model: its module, and the first of its outputs there, of a module that holds several."""

    module: nn.Module
    begin: int = 0


class Mixture:
    """The hooks that mix experts into a model's matrices, at tokens that a gate chooses from the site's input.

    `experts` are those of each place, and `gate` returns the places of these tokens in the flattened batch.
    """

    def __init__(
        self,
        site: nn.Module,
        experts: Sequence[tuple[ExpertsPlace, Experts]],
        num_chosen: int,
        gate: Callable[[Tensor], Tensor],
    ) -> None:
        self.num_chosen, self.gate = num_chosen, gate
        self.at: Tensor | None = None
        self.input_FX: Tensor | None = None
        self.handles = [site.register_forward_pre_hook(self._choose)]
        self.handles += [place.module.register_forward_hook(partial(self._mix, place.begin, one)) for place, one in experts]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def begin(self) -> None:
        """Forget the tokens of the pass before."""
        self.at = self.input_FX = None

    def _choose(self, _site: nn.Module, args: tuple[Any, ...]) -> None:
        input_TX = args[0].detach().flatten(0, -2)
        self.at = self.gate(input_TX).to(input_TX.device)
        self.input_FX = input_TX[self.at].float()

    def _mix(self, begin: int, experts: Experts, _module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.at is None or not len(self.at):
            return output
        assert self.input_FX is not None
        at = self.at.to(args[0].device)
        value_FI = args[0].flatten(0, -2)[at].float()
        change_FO = experts.change(self.input_FX.to(at.device), value_FI, self.num_chosen)
        # A pair is what modules of a serving engine return, the output and a bias.
        first = output[0] if isinstance(output, tuple) else output
        flat = first.flatten(0, -2)
        whole_FO = pad(change_FO, (begin, flat.shape[1] - begin - change_FO.shape[1]))
        mixed = flat.index_copy(0, at, (flat[at].float() + whole_FO).to(flat)).view_as(first)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


class ExpertsHooks:
    """The hooks that make a model read a bank of experts.

    `places` are those of the matrices, if they have other names in the model; `note` is called with the row that decides at
    each token.
    """

    def __init__(
        self,
        model: Any,
        bank: Bank,
        places: Mapping[str, ExpertsPlace] | None = None,
        note: Callable[[Fired], None] | None = None,
    ) -> None:
        self.bank, self.note = bank, note
        at = {name: places[name] if places else ExpertsPlace(model.get_submodule(name)) for name in experts_of(bank.shared)}
        site = at[bank.site].module
        device = _device_of(site)
        rows = bank.on(device)
        self.key_NC, self.radius_N = unpacked(rows["code"]), rows["radius"]
        self.centre_X = bank.shared[CENTRE].to(device)
        experts = [(at[name], one.on(_device_of(at[name].module))) for name, one in experts_of(bank.shared).items()]
        self.mixture = Mixture(site, experts, int(bank.shared[CHOSEN]), self._fired)
        self.handle = model.register_forward_pre_hook(self)

    def remove(self) -> None:
        self.handle.remove()
        self.mixture.remove()

    def __call__(self, _model: nn.Module, _args: tuple[Any, ...]) -> None:
        self.mixture.begin()

    def _fired(self, input_TX: Tensor) -> Tensor:
        """Return the places of the tokens within the radius of a row."""
        found = nearest(signs(input_TX, self.centre_X, self.key_NC.shape[1]), self.key_NC, self.radius_N)
        if self.note is not None:
            self.note(found)
        return (found.row_T != NONE).nonzero()[:, 0]


def _device_of(module: Any) -> torch.device:
    found: torch.device = module.weight.device
    return found
