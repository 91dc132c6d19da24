"""Prometheus metrics of the edit worker and of a replica, merged with vLLM's own into one exposition.

Labels are closed or bounded sets: a prompt, free text or a key is never a label.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from errata.edit import SETTLED, Code, EditRejected, EditState
from errata.guard.limits import SEVERITY

# The states that are counted: `queued` for every accepted edit, and the states in which an edit is settled.
COUNTED = tuple(state for state in get_args(EditState) if state == "queued" or state in SETTLED)
REASONS = (*SEVERITY, "contradiction", "editor")
WORKER = ""  # The edit worker's name among the merged expositions.
NUM_VERSIONS = 16
CODES = (200, 400, 404, 409, 500, 503)  # The codes of the routes that generate.

EDIT_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SWAP_BUCKETS = (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
WORK_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STALL_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)


def reason_of(code: Code) -> str:
    """Map the code of a refusal to one of `REASONS`, which are coarser."""
    if code is Code.CONTRADICTED:
        return "contradiction"
    limit = code.removeprefix("guard.")
    return limit if limit in SEVERITY else "editor"


class WorkerMetrics:
    """The edit worker's metrics in a registry of their own. Counters start at 0 with each process, as Prometheus expects."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self._depth = Gauge("errata_edit_queue_depth", "Edits that wait to be taken", registry=own)
        self._age = Gauge("errata_edit_queue_age_seconds", "How long the oldest of them has waited", registry=own)
        self._edits = Counter("errata_edits", "Edits that came to a state", ["state"], registry=own)
        help = "Refused edits by what they were refused for: the code and, coarser, the reason"
        self._refused = Counter("errata_edits_refused", help, ["reason", "code"], registry=own)
        self._batch = Histogram("errata_batch_edits", "Edits in a version", buckets=EDIT_COUNTS, registry=own)
        self._edit_s = _seconds("errata_edit_seconds", "Time to make an update of a batch", own)
        self._guard_s = _seconds("errata_guard_seconds", "Time to measure and judge an update", own)
        self._append_s = _seconds("errata_append_seconds", "Time to have a version in the ledger", own)
        help = "From a version's append until every replica serves it"
        self._swap_s = Histogram("errata_swap_seconds", help, buckets=SWAP_BUCKETS, registry=own)
        self._behind = Gauge("errata_versions_behind", "Versions between a replica and the live one", ["replica"], registry=own)
        self._live = Gauge("errata_live_version", "The version that is to be served: the ledger's head", registry=own)
        self._newest = Gauge("errata_newest_version", "The highest version in the ledger", registry=own)
        help = "Answers of the served engine to edits of a new version, by whether they are the targets"
        self._served = Counter("errata_served_answers", help, ["answer"], registry=own)
        help = "Live edits that the live version does not answer any more, or was not asked yet"
        self._held = Gauge("errata_held_edits", help, ["answer"], registry=own)
        self._repairs = Counter(
            "errata_edits_repaired", "Lost edits that were made again in a version of their own", registry=own
        )
        self._carried = Gauge("errata_edits_carried", "Live edits by what answers them", ["by"], registry=own)
        help = "Consolidations by what became of them: edits that the memory holds are learnt by the weights"
        self._consolidations = Counter("errata_consolidations", help, ["result"], registry=own)
        self._mirror = Gauge("errata_mlflow_behind", "Versions that MLflow does not have yet", registry=own)
        self._damaged = Gauge("errata_damaged_files", "Versions and snapshots that the last scrub found damaged", registry=own)
        self._swap_failures = Counter("errata_swap_failures", "Swaps that some replica did not make in time", registry=own)
        self._reverts = Counter("errata_reverts", "Versions that take chosen edits out", registry=own)
        self._rollbacks = Counter("errata_rollbacks", "Moves to another version", registry=own)
        for state in COUNTED:  # A rate needs a zero to rise from.
            self._edits.labels(state)
        for code in Code:
            self._refused.labels(reason_of(code), code.value)
        for answer in ("agrees", "differs"):
            self._served.labels(answer)
        for result in ("published", "refused", "outdated"):
            self._consolidations.labels(result)
        self.held()
        self.carried()

    def waiting(self, depth: int, oldest_s: float) -> None:
        """Set the number of queued edits and the age of the oldest one, 0 if there is none."""
        self._depth.set(depth)
        self._age.set(oldest_s)

    def settled(self, state: str, num_edits: int = 1) -> None:
        """Count edits that reached a state. Raises `ValueError` for a state outside `COUNTED`."""
        if state not in COUNTED:
            raise ValueError(f"counted states are {', '.join(COUNTED)}, not {state!r}")
        self._edits.labels(state).inc(num_edits)

    def refused(self, refusal: EditRejected) -> None:
        """Count one rejected edit, its code and the reason."""
        self._refused.labels(reason_of(refusal.code), refusal.code.value).inc()
        self.settled("rejected")

    def published(self, num_edits: int, edit_s: float, guard_s: float, append_s: float) -> None:
        """Count a version of so many edits as published, and the edits as applied."""
        self._batch.observe(num_edits)
        self._edit_s.observe(edit_s)
        self._guard_s.observe(guard_s)
        self._append_s.observe(append_s)
        self.settled("applied", num_edits)

    def served_answer(self, agrees: bool) -> None:
        """Count an answer of the served engine to an edit of its newest version."""
        self._served.labels("agrees" if agrees else "differs").inc()

    def held(self, open: int = 0, lost: int = 0, repairable: int = 0) -> None:
        """Set the numbers of live edits not asked yet, of those that are lost, and of these to be made again."""
        for answer, number in (("unknown", open), ("lost", lost), ("repairable", repairable)):
            self._held.labels(answer).set(number)

    def carried(self, memory: int = 0, weights: int = 0) -> None:
        """Set the numbers of live edits that the memory answers, and that the weights do."""
        for tier, number in (("memory", memory), ("weights", weights)):
            self._carried.labels(tier).set(number)

    def consolidated(self, result: str) -> None:
        """Count a consolidation: it is published, refused, or outdated by a change of the weights."""
        self._consolidations.labels(result).inc()

    def damaged(self, number: int) -> None:
        """Set the number of versions and snapshots that the last scrub of the ledger found damaged."""
        self._damaged.set(number)

    def repaired(self, num_edits: int) -> None:
        """Count edits that a repair made again."""
        self._repairs.inc(num_edits)

    def swapped(self, swap_s: float) -> None:
        self._swap_s.observe(swap_s)

    def swap_failed(self) -> None:
        self._swap_failures.inc()

    def reverted(self, num_edits: int) -> None:
        """Count a revert of so many edits."""
        self._reverts.inc()
        self.settled("reverted", num_edits)

    def rolled_back(self) -> None:
        self._rollbacks.inc()

    def versions(self, live: int, newest: int, replicas: Mapping[str, int]) -> None:
        """Set the live and the newest version, and how far each replica that answers is behind; others are dropped."""
        self._live.set(live)
        self._newest.set(newest)
        self._behind.clear()
        for replica, version in replicas.items():
            self._behind.labels(replica).set(abs(live - version))  # After a rollback a replica is ahead, and as wrong.

    def mirrored(self, behind: int) -> None:
        """Set the number of versions that MLflow lacks."""
        self._mirror.set(behind)

    def exposition(self) -> str:
        return generate_latest(self.registry).decode()


class ReplicaMetrics:
    """One replica's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self._tokens = Counter(
            "errata_tokens", "Generated tokens by the version they were sent under", ["version"], registry=own
        )
        help = "Answers by the version they ended under and their HTTP code"
        self._completions = Counter("errata_completions", help, ["version", "code"], registry=own)
        self._answers = Counter("errata_answers", "Answers by their HTTP code", ["code"], registry=own)
        help = "Requests refused before their route, for keys, sizes and limits, by their code"
        self._refused = Counter("errata_requests_refused", help, ["code"], registry=own)
        self._spanning = Counter("errata_spanning_completions", "Answers begun under another version", registry=own)
        help = "How long a request was held back by a swap or for its version"
        self._stall = Histogram("errata_stall_seconds", help, buckets=STALL_BUCKETS, registry=own)
        self._version = Gauge("errata_replica_version", "The version that the replica serves", registry=own)
        help = "1 where requests are answered, 0 where they are turned away until the replica is at the head again"
        self._in_rotation = Gauge("errata_in_rotation", help, registry=own)
        help = "Requests that the memory of edits was read for, by whether an edit fired"
        self._lookups = Counter("errata_memory_lookups", help, ["result"], registry=own)
        help = "Time to read the memory for a request, with the wait for a thread"
        self._lookup_s = Histogram("errata_memory_lookup_seconds", help, buckets=WORK_BUCKETS, registry=own)
        self._prompt_tokens = Counter("errata_memory_prompt_tokens", "Tokens that the memory added to prompts", registry=own)
        self._records = Gauge("errata_memory_records", "Records of the served version's memory", registry=own)
        for result in ("hit", "miss"):
            self._lookups.labels(result)
        self._recent: OrderedDict[int, set[int]] = OrderedDict()  # Versions by their last use, with the codes of their answers.
        for code in CODES:  # A rate needs a zero to rise from.
            self._answers.labels(str(code))

    def admitted(self, waited_s: float) -> None:
        self._stall.observe(waited_s)

    def generated(self, version: int, num_tokens: int) -> None:
        self._use(version)
        self._tokens.labels(str(version)).inc(num_tokens)

    def completed(self, version_min: int, version_max: int, code: int) -> None:
        """Count an answer that has ended, with an error code too."""
        self._use(version_max).add(code)
        self._completions.labels(str(version_max), str(code)).inc()
        self._answers.labels(str(code)).inc()
        if version_min != version_max:
            self._spanning.inc()

    def turned_away(self, code: int) -> None:
        """Count a request that was refused before any version was involved."""
        self._answers.labels(str(code)).inc()

    def refused(self, code: str) -> None:
        """Count a request that was refused before its route was called; `code` is that of its answer."""
        self._refused.labels(code).inc()

    def memory_read(self, is_hit: bool, seconds: float, added_tokens: int) -> None:
        """Count a request that the memory was read for, and the tokens that this added to its prompt."""
        self.memory_asked(is_hit)
        self._lookup_s.observe(seconds)
        self._prompt_tokens.inc(added_tokens)

    def memory_asked(self, is_hit: bool) -> None:
        """Count a request of a version with a memory, by whether an edit fired."""
        self._lookups.labels("hit" if is_hit else "miss").inc()

    def serves(self, version: int, in_rotation: bool = True, num_records: int = 0) -> None:
        self._version.set(version)
        self._in_rotation.set(in_rotation)
        self._records.set(num_records)

    def exposition(self) -> str:
        return generate_latest(self.registry).decode()

    def _use(self, version: int) -> set[int]:
        """Keep the series of the last `NUM_VERSIONS` used versions only; a stream of edits would make one each second."""
        codes = self._recent.setdefault(version, set())
        self._recent.move_to_end(version)
        if len(self._recent) > NUM_VERSIONS:
            old, old_codes = self._recent.popitem(last=False)
            self._tokens.remove_by_labels({"version": str(old)})
            for code in old_codes:
                self._completions.remove(str(old), str(code))
        return codes


def num_tokens(answer: Mapping[str, Any], is_event: bool) -> int:
    """Count the tokens of an OpenAI answer by its `usage`, or of a stream's event as one for each choice with text.

    vLLM sends an event for each token unless the client reads too slowly; an event of several tokens counts as one.
    """
    if not is_event:
        return int((answer.get("usage") or {}).get("completion_tokens") or 0)
    return sum(bool(choice.get("text") or (choice.get("delta") or {}).get("content")) for choice in answer.get("choices") or ())


def merged(own: Mapping[str, str]) -> str:
    """Merge the expositions of several processes: each family once, with the replica's name as a label of its samples.

    The keys are the replicas' names; `WORKER` names the edit worker, whose samples get no label. An existing label `replica`
    stays. Raises `ValueError` for text that is no exposition, and for a family of two types.
    """
    return generate_latest(_Merged(own)).decode()


class _Merged(Collector):
    def __init__(self, own: Mapping[str, str]) -> None:
        self.families: dict[str, Any] = {}
        for source, text in own.items():
            for family in _families(source, text):
                known = self.families.setdefault(family.name, family)
                if known.type != family.type:
                    raise ValueError(
                        f"{family.name} is a {family.type} at {source or 'the edit worker'}, elsewhere a {known.type}"
                    )
                if known is not family:
                    known.samples += family.samples

    def collect(self) -> Iterator[Any]:
        yield from self.families.values()


def _families(source: str, text: str) -> Iterator[Any]:
    try:
        for family in text_string_to_metric_families(text):
            if source != WORKER:
                family.samples = [_labelled(sample, source) for sample in family.samples]
            yield family
    except ValueError as fault:
        raise ValueError(f"the metrics of {source or 'the edit worker'} are no Prometheus exposition: {fault}") from None


def _labelled(sample: Sample, replica: str) -> Sample:
    return sample._replace(labels={"replica": replica, **sample.labels})


def _seconds(name: str, help: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, help, buckets=WORK_BUCKETS, registry=registry)
