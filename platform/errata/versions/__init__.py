"""What `errata.ledger` is made of: files that are whole or not there, entries, index, editors' states, snapshots, recovery."""
