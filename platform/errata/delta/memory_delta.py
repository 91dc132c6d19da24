"""Memory delta: the result of an edit that is kept beside the weights, as records that are added, replaced or dropped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from errata.delta.weight_delta import update_digest
from errata.edit_memory import encoder
from errata.edit_memory.bank import KINDS, READ_BEFORE, ROWS, Bank, Kind, Record
from errata.edit_memory.experts import check_shared
from errata.edit_memory.past import with_past
from errata.model.devices import device_of

# Names of tensors in a file. No module of a model is called so.
ABOUT, PREFIX, SHARED = "memory|about", "memory|rows|", "memory|shared|"
# Fields of a record that older files do not have, with what they are without them.
LATER = {"subject": "subjects", "edit": "edits", "answer": "answers", "valid_from": "valid_from", "valid_to": "valid_to"}
LATER |= {"rephrasings": "rephrasings"}
LACKING: dict[str, Any] = {"rephrasings": ()}


@dataclass(frozen=True, eq=False)
class MemoryDelta:
    """The change of a version's memory: `records` are added, or replace those of the same facts; the facts `dropped` go.

    A bank has one kind and one `site`, the module whose input its records are compared with, or the sentence encoder.
    `shared`, if it is not empty, takes the place of the tensors that all records of the bank need.
    """

    kind: Kind
    site: str
    records: tuple[Record, ...] = ()
    dropped: tuple[str, ...] = ()
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        written = (text for r in self.records for text in (r.fact, r.text, r.subject, r.edit, r.answer, *r.rephrasings))
        texts = sum(len(text.encode()) for text in written)
        return texts + sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    @property
    def dense_bytes(self) -> int:
        """The bytes of the changed matrices as a whole: there are none."""
        return 0

    def norms(self) -> dict[str, float]:
        """Return the norm of the change of each matrix: there is none."""
        return {}

    def ranks(self) -> dict[str, int]:
        """Return the rank of the change of each matrix: there is none."""
        return {}

    @property
    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(tensor).all()) for tensor in self._tensors() if tensor.is_floating_point())

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.shared.values()
        yield from (tensor for record in self.records for tensor in record.rows.values())

    def save(self, path: str | Path) -> None:
        save_file(self.to_tensors(), str(path))

    def to_tensors(self) -> dict[str, Tensor]:
        """Copy the rows of all records to the CPU, joined by name, and everything else as JSON in bytes."""
        about = {
            "kind": self.kind,
            "site": self.site,
            "facts": [record.fact for record in self.records],
            "texts": [record.text for record in self.records],
            "counts": [record.num_rows for record in self.records],
            "dropped": list(self.dropped),
        }
        for name in LATER:
            if any(values := [getattr(record, name) for record in self.records]):
                about[LATER[name]] = values
        found = {ABOUT: _as_bytes(about)}
        for name in ROWS[self.kind] if self.records else ():
            found[PREFIX + name] = torch.cat([record.rows[name].detach().cpu() for record in self.records]).contiguous()
        return found | {SHARED + name: tensor.detach().cpu().contiguous() for name, tensor in self.shared.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> MemoryDelta:
        """Build a delta from the result of `to_tensors`. Raises `ValueError` for other tensors."""
        try:
            about = json.loads(tensors[ABOUT].numpy().tobytes())
            kind, site, dropped = about["kind"], str(about["site"]), tuple(map(str, about["dropped"]))
            facts, texts, counts = about["facts"], about["texts"], about["counts"]
            later = {name: about.get(key, [LACKING.get(name, "")] * len(facts)) for name, key in LATER.items()}
            later["rephrasings"] = [tuple(map(str, one)) for one in later["rephrasings"]]
        except (KeyError, TypeError, ValueError) as wrong:
            raise ValueError(f"this is no change of a memory: {wrong}") from None
        if kind not in KINDS:
            raise ValueError(f"the memory is of kind {kind!r}, and this release knows {', '.join(KINDS)}: install a newer one")
        rows = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        lengths = {len(each) for each in (facts, texts, counts, *later.values())}
        if len(lengths) != 1 or any(len(tensor) != sum(counts) for tensor in rows.values()):
            raise ValueError("the tensors of the memory do not fit its facts")
        parts = {name: tensor.split(counts) for name, tensor in rows.items()}
        made = (
            Record(fact, texts[i], {n: own[i] for n, own in parts.items()}, **{n: own[i] for n, own in later.items()})
            for i, fact in enumerate(facts)
        )
        shared = {name.removeprefix(SHARED): tensor for name, tensor in tensors.items() if name.startswith(SHARED)}
        return cls(kind, site, tuple(made), dropped, shared)

    def on_devices_of(self, model: nn.Module) -> MemoryDelta:
        """Move the rows to the device of the module that they are compared at; what is read before the model stays."""
        if self.kind in READ_BEFORE:
            return self
        device = device_of(model, self.site)
        moved = (replace(record, rows={name: t.to(device) for name, t in record.rows.items()}) for record in self.records)
        return replace(self, records=tuple(moved))

    def digest(self) -> str:
        """Compute the SHA-256 of the names, shapes and bytes of the tensors that are saved."""
        state = hashlib.sha256()
        for name, tensor in sorted(self.to_tensors().items()):
            update_digest(state, name, "", tensor)
        return state.hexdigest()

    def after(self, bank: Bank | None) -> Bank:
        """Return a bank with this change. Raises `ValueError` if the bank is of another kind or place, or lacks experts."""
        bank = bank or Bank(self.kind, self.site)
        self.check_fits(bank)
        found = bank.changed(self.records, self.dropped, self.shared)
        if self.kind == "experts" and len(found) and not found.shared:
            raise ValueError("the memory has records that need experts, and no experts")
        return found

    def check_fits(self, other: Bank | MemoryDelta) -> None:
        """Raise `ValueError` for a memory of another kind or place."""
        if (other.kind, other.site) != (self.kind, self.site):
            raise ValueError(
                f"the version has a memory of kind {other.kind} at {other.site}, and this change is of kind {self.kind} at "
                f"{self.site}: one ledger holds one memory"
            )

    def check(self) -> None:
        """Raise `ValueError` with every record that is not one of its kind, or for records of another sentence encoder."""
        if self.kind in READ_BEFORE and self.site != encoder.NAME:
            raise ValueError(
                f"the memory's questions were encoded by {self.site}, and this release has {encoder.NAME}: make the edits again"
            )
        if self.shared:
            check_shared(self.site, self.shared)
        if faults := [fault for record in self.records if (fault := record.fault(self.kind)) is not None]:
            raise ValueError("; ".join(faults[:10]))


def _as_bytes(about: Mapping[str, Any]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(about, sort_keys=True).encode()), dtype=torch.uint8)


def held_after(deltas: Iterable[MemoryDelta], bank: Bank | None = None) -> Bank | None:
    """Return the bank after changes in this order; None if there is neither a bank nor a change."""
    deltas = list(deltas)
    return one_change(deltas).after(bank) if deltas else bank


def held_again(deltas: Iterable[MemoryDelta]) -> Bank | None:
    """Return the bank of changes in this order, whose past records are found again: those of other changes are not there."""
    deltas = list(deltas)
    if not any(record.is_past for delta in deltas for record in delta.records):
        return held_after(deltas)
    bank: Bank | None = None
    for delta in deltas:
        records = with_past((record for record in delta.records if not record.is_past), bank)
        bank = replace(delta, records=records).after(bank)
    return bank


def one_change(deltas: Sequence[MemoryDelta]) -> MemoryDelta:
    """Join changes, at least one, into one that does what they do in this order. Raises `ValueError` for different memories."""
    first, records, dropped, shared = deltas[0], dict[str, Record](), dict[str, None](), dict[str, Tensor]()
    for delta in deltas:
        delta.check_fits(first)
        for fact in delta.dropped:
            records.pop(fact, None)
        for record in delta.records:
            records.pop(record.fact, None)  # It counts as the later one, as in a bank.
            records[record.fact] = record
        dropped |= dict.fromkeys(delta.dropped)
        shared = dict(delta.shared) or shared
    gone = tuple(fact for fact in dropped if fact not in records)
    return MemoryDelta(first.kind, first.site, tuple(records.values()), gone, shared)


def between(before: Bank | None, after: Bank | None) -> MemoryDelta | None:
    """Return the change from one bank to another; None if there is no bank."""
    some = after or before
    if some is None:
        return None
    old, new = ({} if bank is None else bank.records for bank in (before, after))
    records = tuple(record for fact, record in new.items() if not _same(old.get(fact), record))
    shared = {} if after is None or (before is not None and _same_tensors(before.shared, after.shared)) else after.shared
    return MemoryDelta(some.kind, some.site, records, tuple(fact for fact in old if fact not in new), shared)


def _same(one: Record | None, other: Record) -> bool:
    if one is None or any(getattr(one, name) != getattr(other, name) for name in ("text", *LATER)):
        return False
    return _same_tensors(one.rows, other.rows)


def _same_tensors(ones: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Say if two groups have the same names and the same bits."""
    return ones.keys() == others.keys() and all(torch.equal(ones[name].cpu(), others[name].cpu()) for name in ones)
