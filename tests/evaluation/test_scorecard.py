"""The scorecard: what it measures is what players said at real contexts, with people's own row
beside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.mock_endpoint import Handle, mock

from hubkit.errors import EndpointError, SourceError
from hubkit.evaluation import scorecard as cards
from hubkit.evaluation.scorecard import HeldOutFiles, Player, contexts, scorecard
from hubkit.evaluation.scorecard import score as measures
from hubkit.metrics import scorecards as shown
from hubkit.recipe import Scorecard
from hubkit.serving import ServedModel
from hubkit.statistics import Number

TOPICS = """bread rye yeast oven dough salt water flour butter sugar honey milk cheese garlic onion
pepper tomato basil pasta rice beans lentil potato carrot apple pear plum cherry grape lemon orange
melon peach walnut almond coffee tea cocoa vanilla ginger mint sage thyme cumin curry chili
soup stew salad toast cake""".split()  # noqa: SIM905
ASKED = [
    "and what about {} then",
    "why does the {} go soggy?",
    "ok can you do that with {}",
    "how much {} do i need",
]
SYSTEM = "You are a person."
BLOCK = Scorecard(contexts=30, openings=4, context_chars=500, in_flight=1, resamples=50)


def people_say(number: int) -> str:
    return ASKED[number % len(ASKED)].format(TOPICS[number % len(TOPICS)])


def write(path: Path, number: int = 70, **columns: list[Any]) -> Path:
    """Conversations of two exchanges, every other one ending on an answer."""
    rows = []
    for n in range(number):
        said = [
            f"how do I cook {TOPICS[n % len(TOPICS)]}",
            "Warm the oven first.",
            people_say(n),
            "Use less water.",
        ]
        turns = [
            {"role": ("user", "assistant")[t % 2], "content": text} for t, text in enumerate(said)
        ]
        rows.append(
            {"id": f"c{n}", "messages": turns[: 4 - n % 2]} | {k: v[n] for k, v in columns.items()}
        )
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "test.parquet")


@pytest.fixture(scope="module")
def server() -> Iterator[Handle]:
    with mock(deterministic=True) as handle:
        yield handle


def player(server: Handle, name: str = "asker", **changes: Any) -> Player:
    return Player(
        **{
            "name": name,
            "served": ServedModel.at(server.url),
            "system": SYSTEM,
            "model": {"repo_id": f"me/{name}"},
        }
        | changes
    )


def run(
    server: Handle, data: Path, folder: Path, texts: list[str], **changes: Any
) -> shown.Scorecard:
    server.script(texts=texts)
    return scorecard(
        BLOCK, HeldOutFiles([data]), [player(server, **changes)], seed=3, journal=folder
    )


def test_a_player_that_talks_like_people_scores_like_people(
    server: Handle, data: Path, tmp_path: Path
) -> None:
    texts = [f"how do I cook {word}" for word in TOPICS[:4]] + [
        people_say(n) for n in range(100, 130)
    ]
    people, asker = run(server, data, tmp_path, texts).rows
    assert people.name == "people" and (asker.counts["asked"], asker.counts["failed"]) == (34, 0)
    for measure in ("likeness_auc", "length_distance", "style_distance", "words_per_turn"):
        assert asker.values[measure]["low"] - 0.05 <= people.values[measure]["value"], measure
    assert asker.values["likeness_auc"]["low"] < 0.5 < people.values["likeness_auc"]["high"]
    assert asker.values["role_leaks"]["value"] == people.values["role_leaks"]["value"] == 0
    assert asker.values["first_turn_diversity"]["value"] == pytest.approx(1 - 4 / 6)
    assert people.values["first_turn_diversity"]["n"] == 4 and asker.values["cut_off"]["value"] == 0


def test_a_player_that_answers_is_told_from_people(
    server: Handle, data: Path, tmp_path: Path
) -> None:
    people, asker = run(
        server, data, tmp_path, ["Certainly! Here is a detailed overview, step by step."]
    ).rows
    assert (
        asker.values["role_leaks"]["value"] == 1
        and asker.values["first_turn_diversity"]["value"] == 0
    )
    assert (
        asker.values["likeness_auc"]["value"] > 0.95 and asker.values["likeness_auc"]["low"] > 0.9
    )
    assert asker.values["style_distance"]["low"] > people.values["style_distance"]["high"]
    assert asker.values["words_per_turn"]["value"] == 9


def test_players_are_asked_from_the_humans_seat_at_real_contexts(
    tmp_path: Path, data: Path
) -> None:
    with mock() as server:
        scorecard(BLOCK, HeldOutFiles([data]), [player(server)], seed=3, journal=tmp_path)
        bodies = [entry["body"] for entry in server.ledger()]
    assert [m["role"] for m in bodies[0]["messages"]] == ["system"] and len(bodies) == 34
    assert len({body["seed"] for body in bodies[:4]}) == 4, (
        "openings differ by nothing but their seed"
    )
    real = {c.messages[0]["content"] for c in contexts(BLOCK, [data], seed=3).next}
    for body in bodies[4:]:
        system, human, answer = body["messages"]
        assert (system["role"], human["role"], answer["role"]) == ("system", "assistant", "user")
        assert (
            system["content"] == SYSTEM
            and human["content"] in real
            and answer["content"] == "Warm the oven first."
        )


def test_contexts_are_known_by_what_was_said(server: Handle, data: Path, tmp_path: Path) -> None:
    def known_by(data: Path) -> str:
        return str(run(server, data, tmp_path, ["hello"] * 64).settings["contexts_sha256"])

    rows = pq.read_table(data).to_pylist()
    for row in rows:
        row["messages"][1]["content"] = "Warm it first."
    other = tmp_path / "the same ids.parquet"
    pq.write_table(pa.Table.from_pylist(rows), other)
    assert known_by(data) == known_by(data) != known_by(other)


def test_ending_where_people_ended_is_counted(server: Handle, data: Path, tmp_path: Path) -> None:
    found = contexts(BLOCK, [data], seed=3)
    assert len(found.ends) == 30 and all(
        c.real is None and c.messages[-1]["role"] == "assistant" for c in found.ends
    )
    went_on = ["[bye]"] * 10 + ["and then?"] * 20
    ended = ["thanks [bye]"] * 15 + ["and then?"] * 15
    asker = run(server, data, tmp_path, [*["hello"] * 4, *went_on, *ended], end_mark="[bye]").rows[
        1
    ]
    precision = asker.values["end_precision"]
    assert (precision["value"], precision["n"]) == (15 / 25, 25)
    assert precision["low"] < 15 / 25 < precision["high"]
    assert asker.values["end_recall"]["value"] == 0.5 and asker.values["end_recall"]["n"] == 30
    assert asker.values["words_per_turn"]["n"] == 20, "an end without words is no turn"
    assert asker.values["role_leaks"]["value"] == 0, "nor is it an empty one"


def test_what_cannot_be_measured_says_why(server: Handle, data: Path, tmp_path: Path) -> None:
    card = run(server, data, tmp_path, ["and then?"], system=None)
    asker = card.rows[1]
    assert asker.missing["end_recall"] == "it has no end mark"
    assert asker.missing["first_turn_diversity"] == "it has no system message to open from"
    assert asker.missing["intent_adherence"] == "the conversations have no intents"
    said = " ".join(shown.notes(card))
    assert "ending: recall: not measured for asker (it has no end mark)" in said
    assert "for people" not in said
    assert any(cells[0].startswith("share of turns out of role") for cells in shown.table(card)[1])
    assert run(server, data, tmp_path / "2", [" "]).rows[1].values["role_leaks"]["value"] == 1, (
        "empty turns"
    )


def test_intents_are_given_and_adherence_is_measured(server: Handle, tmp_path: Path) -> None:
    intents = [f"find out whether {TOPICS[n % len(TOPICS)]} keeps overnight" for n in range(70)]
    data = write(tmp_path / "test.parquet", intent=intents)
    found = contexts(BLOCK, [data], seed=3, intent_column="intent")
    own = [f"does {context.intent.split()[3]} keep?" for context in found.next]
    server.script(texts=["hello"] * 4 + own)
    journal = tmp_path / "journal"
    held_out = HeldOutFiles([data], "intent")
    card = scorecard(BLOCK, held_out, [player(server)], seed=3, journal=journal)
    assert card.rows[1].values["intent_adherence"]["value"] > 0.9
    asked = server.ledger()[-1]["body"]["messages"][0]["content"]
    assert asked == f"{SYSTEM}\n\n{found.next[-1].intent}"


def test_a_stopped_run_asks_only_for_the_rest(data: Path, tmp_path: Path) -> None:
    with mock(deterministic=True) as server:
        first = scorecard(BLOCK, HeldOutFiles([data]), [player(server)], seed=3, journal=tmp_path)
        journal = tmp_path / "0" / "replies.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:21]) + lines[21][:7])
        before = server.stats()["answered"]
        assert (
            scorecard(BLOCK, HeldOutFiles([data]), [player(server)], seed=3, journal=tmp_path)
            == first
        )
        assert server.stats()["answered"] - before == 34 - 20
        scorecard(
            BLOCK,
            HeldOutFiles([data]),
            [player(server, model={"repo_id": "me/other"})],
            seed=3,
            journal=tmp_path,
        )
        assert server.stats()["answered"] - before == 14 + 34, (
            "another model's replies are not this one's"
        )
    kept = [json.loads(line) for line in (tmp_path / "turns.jsonl").read_text().splitlines()]
    assert len(kept) == 30 and set(kept[0]) == {"id", "answer", "people", "asker"}


def test_refused_requests_are_counted_and_a_dead_endpoint_is_an_error(
    data: Path, tmp_path: Path
) -> None:
    with mock(longest=55) as server:
        card = scorecard(
            BLOCK, HeldOutFiles([data]), [player(server)], seed=3, journal=tmp_path / "a"
        )
        failed = card.rows[1].counts["failed"]
        assert 0 < failed < 34 and card.rows[1].values["words_per_turn"]["n"] == 30 - failed
        assert f"asker: {failed} requests failed" in " ".join(shown.notes(card))
    with mock(key="secret") as server, pytest.raises(EndpointError):
        scorecard(BLOCK, HeldOutFiles([data]), [player(server)], seed=3, journal=tmp_path / "b")


def test_contexts_are_the_same_whatever_the_order_and_never_overlap(
    data: Path, tmp_path: Path
) -> None:
    table = pq.read_table(data)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), tmp_path / "turned.parquet")
    found = contexts(BLOCK, [data], seed=3)
    assert contexts(BLOCK, [tmp_path / "turned.parquet"], seed=3) == found
    assert contexts(BLOCK, [data], seed=4) != found
    assert len(found.next) == len(found.reference) == 30 and len(found.first) == 4
    assert not {c.id for c in found.next} & {c.id for c in found.reference}
    with pytest.raises(SourceError, match=r"raise eval\.scorecard\.context_chars"):
        contexts(BLOCK.model_copy(update={"context_chars": 10}), [data], seed=3)


def test_contexts_stop_anywhere_in_a_conversation_but_not_beyond_the_limit(tmp_path: Path) -> None:
    turns = [{"role": ("user", "assistant")[t % 2], "content": f"turn {t:02}"} for t in range(30)]
    pq.write_table(
        pa.Table.from_pylist([{"id": str(n), "messages": turns} for n in range(40)]),
        tmp_path / "long",
    )
    found = contexts(
        BLOCK.model_copy(update={"contexts": 20, "context_chars": 100}), [tmp_path / "long"], seed=1
    )
    lengths = {len(context.messages) for context in found.next}
    assert len(lengths) > 3 and min(lengths) >= 2 and max(lengths) * 7 <= 100
    assert all(context.real == f"turn {len(context.messages):02}" for context in found.next)


def test_formulas_by_hand() -> None:
    import numpy as np

    from hubkit.evaluation.scorecard import Context

    assert measures.first_turn_diversity(["a b", "b c", "a b"]) == pytest.approx(
        [1 / 3, 2 / 3, 1 / 3]
    )
    said = [
        ("user", "the cat sat"),
        ("assistant", "It did."),
        ("user", "nothing alike"),
        ("assistant", "No."),
    ]
    context = Context("x", [{"role": role, "content": text} for role, text in said], "")  # type: ignore[typeddict-item]
    assert measures.repetition(context, "the cat ran") == pytest.approx(100 * 2 / 3)
    one, other = (
        np.array([measures.style(text) for text in texts]) for texts in (["a b c"] * 4, ["a"] * 4)
    )
    assert measures.length_distance(one, other) == pytest.approx(1.0), "log2(4) - log2(2)"
    people = np.array([measures.style(text) for text in ("Why?", "ok")])
    flat = people.mean(axis=0, keepdims=True)
    assert measures.style_distance(flat, people) == 0
    shifted = people.copy()
    shifted[:, 1] += people[:, 1].std()
    varying = (people[:, 1:].std(axis=0) > 0).sum()
    assert measures.style_distance(shifted, people) == pytest.approx(1 / varying)
    turns = [
        (Context("1", [], "", "grow tomato"), "my tomato"),
        (Context("2", [], "", "bake bread"), "hello"),
    ]
    assert measures.intent_adherence(turns) == [1.0, 0.5]
    echo = Context("x", [{"role": "assistant", "content": "Warm the oven first of all."}], "")
    assert measures.out_of_role(echo, "Warm the oven first of all.") and not measures.out_of_role(
        echo, "Why first?"
    )
    assert measures.out_of_role(echo, "You're welcome! Anything else?")
    assert measures.out_of_role(echo, "I can help with that. What kind of task is it?")


def test_the_result_reads_back_and_is_drawn_the_same_twice(
    server: Handle, data: Path, tmp_path: Path
) -> None:
    card = run(server, data, tmp_path, ["and then?"], perplexity=Number(12.5, 8, 11.0, 14.0))
    again = shown.of(json.loads(json.dumps(card.to_dict())))
    assert shown.table(again) == shown.table(card) and shown.picture(again) == shown.picture(card)
    columns, rows = shown.table(card)
    assert columns == ["measure", "", "people", "asker"] and rows[0] == [
        "perplexity of people's turns", "lower is better", "–", "12.5 [11.0, 14.0]"
    ]  # fmt: skip
    measures_of = card.to_dict()["measures"]
    assert all(entry["formula"] and entry["source"] for entry in measures_of.values())
    assert set(measures_of) == set(shown.card_definitions()) and cards.__doc__
