"""The ledger: an append-only directory of versions, the source of truth. Version 0 is the base model.

One file for each part of the directory, and for each operation on all of it.
"""

from errata.ledger.base_model import check_base
from errata.ledger.entry import DELTA, EDITS, ENTRY, STATE, HeadMoved, LedgerConflict, LedgerDamaged, UnknownVersion, Version
from errata.ledger.ledger import REFUSALS, Ledger
from errata.ledger.quarantine import QuarantinedVersion
from errata.ledger.snapshots import read_segments

__all__ = ["DELTA", "EDITS", "ENTRY", "REFUSALS", "STATE", "Ledger", "LedgerConflict", "LedgerDamaged", "QuarantinedVersion"]
__all__ += ["HeadMoved", "UnknownVersion", "Version", "check_base", "read_segments"]
