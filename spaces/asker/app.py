"""Meet an asker: answer its questions, watch it question a chat model, tell its questions from
people's.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from models import Model, ModelError, model, prepare, settings, stream
from page import (
    PER_MINUTE,
    RateLimit,
    TextChatbot,
    aside,
    checked,
    cut_off,
    launch,
    messages_of,
)
from votes import KEPT, VoteRefusedError, Votes, ballot

SETTINGS = settings()
ASKER, CHAT = model("asker", SETTINGS), model("chat", SETTINGS)
LIMIT = RateLimit(PER_MINUTE)
VOTES = Votes()
MAX_TURNS = 12
PAUSED: dict[str | None, bool] = {}
DOWNLOADS = Path(tempfile.mkdtemp(prefix="dialogues-"))
TOPICS = [
    "What should I cook for four friends, one of whom is vegan?",
    "How do I get better at chess?",
    "Why is the sky blue?",
]
Messages = list[dict[str, str]]  # role, content and, where it was cut off, a `note` that says so
SWAPPED_ROLE = {"user": "assistant", "assistant": "user", "system": "system"}


def swapped(messages: Messages) -> Messages:
    """The conversation from the other seat: what the asker writes is `assistant` there."""
    return [{**message, "role": SWAPPED_ROLE[message["role"]]} for message in messages]


def spoken(messages: Messages) -> Messages:
    """What was said in it, without notes: what a model reads, and what is kept."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def on_page(messages: Messages) -> list[dict[str, Any]]:
    """As the page shows it: each note below its turn."""
    lines: list[dict[str, Any]] = []
    for message in messages:
        lines += spoken([message])
        if "note" in message:
            lines.append({**aside(f"*{message['note']}*"), "role": message["role"]})
    return lines


def noted(role: str, words: str, note: str) -> dict[str, str]:
    """One turn, with what is to be noted of it."""
    return {"role": role, "content": words, **({"note": note} if note else {})}


def turn(who: Model, messages: Messages, temperature: float) -> Iterator[tuple[str, str]]:
    """(text so far, status) of `who`'s next turn in `messages`, where the asker is `user`; the last
    status says that the turn was cut off, where it was. Raises `gr.Error`.
    """
    seat_messages = spoken(swapped(messages) if who.role == "asker" else messages)
    text = ""
    try:
        for piece in stream(
            who, seat_messages, temperature=temperature, top_p=who.top_p, max_tokens=who.max_tokens
        ):
            text += piece.text
            yield text, cut_off(who.max_tokens) if piece.is_cut else piece.status
    except ModelError as error:
        raise gr.Error(str(error)) from error


def whole_turn(who: Model, messages: Messages, temperature: float) -> str:
    """`who`'s next turn when it is written to the end."""
    return next(iter(deque((text for text, _ in turn(who, messages, temperature)), maxlen=1)), "")


def ended(text: str) -> tuple[str, bool]:
    """The asker's words without its end mark, and whether it has ended: by its mark, or by saying
    nothing.
    """
    words, mark, _ = text.partition(ASKER.end_mark) if ASKER.end_mark else (text, "", "")
    return words.strip(), bool(mark) or not words.strip()


def in_progress(messages: Messages, role: str, text: str, status: str) -> list[dict[str, Any]]:
    """`messages` with a turn that is still being written, or a status in its place, to be shown."""
    return [*on_page(messages), {"role": role, "content": text or f"*{status or '…'}*"}]


# 1. You are the assistant

FAILED = "⚠️"  # begins what the page says of an error
ENDED = "**The asker has ended the conversation.** Start another one, or keep this one as JSON."


def open_conversation(
    topic: str, temperature: float, request: gr.Request
) -> Iterator[tuple[Any, ...]]:
    """Begin: with the person's own topic as the asker's first turn, or with whatever the asker
    opens with.
    """
    LIMIT.check(request)
    if topic.strip():
        messages = [{"role": "user", "content": checked(topic)}]
        yield on_page(swapped(messages)), messages, "It is your turn: answer."
        return
    yield from _asker_speaks([], temperature)


def answer_it(
    messages: Messages, answer: str, temperature: float, request: gr.Request
) -> Iterator[tuple[Any, ...]]:
    """The person has answered as the assistant; the asker asks on. Takes the place of an answer
    that it never read.

    The box is emptied once the answer is taken, and left alone from then on: the person may be
    writing the next one. Where the asker cannot read it, the answer stands there again."""
    LIMIT.check(request)
    if not messages:
        raise gr.Error("Let the asker speak first: press Start.")
    before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    box: Any = ""
    for step in _asker_speaks(
        [*before, {"role": "assistant", "content": checked(answer)}], temperature
    ):
        yield *step, answer if step[2].startswith(FAILED) else box
        box = gr.skip()


def ask_again(
    messages: Messages, temperature: float, request: gr.Request
) -> Iterator[tuple[Any, ...]]:
    """Take the asker's last turn back and let it write another one."""
    LIMIT.check(request)
    if messages and messages[-1]["role"] == "user":
        messages = messages[:-1]
    yield from _asker_speaks(messages, temperature)


def take_back(messages: Messages) -> tuple[list[dict[str, Any]], Messages, str]:
    """Take back the person's last answer, and what the asker made of it."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    remaining = messages[: answers[-1]] if answers else messages
    return (
        on_page(swapped(remaining)),
        remaining,
        "Taken back. Answer again." if answers else "There is no answer to take back.",
    )


def _asker_speaks(messages: Messages, temperature: float) -> Iterator[tuple[Any, ...]]:
    text = status = ""
    writing = "The asker is writing …"
    yield in_progress(swapped(messages), "assistant", "", ""), messages, writing
    try:
        for text, status in turn(ASKER, messages, temperature):
            yield (
                in_progress(swapped(messages), "assistant", text, status),
                messages,
                writing,
            )
    except gr.Error as error:
        yield (
            on_page(swapped(messages)),
            messages,
            f"{FAILED} {error.message} To try again, press *Ask something else*.",
        )
        return
    words, over = ended(text)
    if words:
        messages = [*messages, noted("user", words, status)]
    yield on_page(swapped(messages)), messages, ENDED if over else "It is your turn: answer."


# 2. Watch them talk

START, GO_ON = "Start", "Go on"


def converse(
    messages: Messages,
    opening: str,
    turns: float,
    temperature: float,
    request: gr.Request,
    *,
    steps: int | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Let them talk (see `_talking`); what goes wrong is said under the conversation, which stays
    as it is.
    """
    messages_state = messages
    try:
        for chat_view, messages_state, status in _talking(
            messages, opening, turns, temperature, request, steps
        ):
            yield chat_view, messages_state, status
    except gr.Error as error:
        button = GO_ON if messages_state else START
        news = f"{FAILED} {error.message} To try again, press *{button}*."
        yield on_page(messages_state), messages_state, news


def _talking(
    messages: Messages,
    opening: str,
    turns: float,
    temperature: float,
    request: gr.Request,
    steps: int | None,
) -> Iterator[tuple[list[dict[str, Any]], Messages, str]]:
    """Go on with the conversation until the asker ends it, it has its turns, or `steps` further
    turns are written.

    Only whole turns enter the state, so pausing in the middle of one loses nothing but that one.
    """
    LIMIT.check(request)
    PAUSED.pop(request.session_hash, None)
    if not messages and opening.strip():
        messages = [{"role": "user", "content": checked(opening)}]
        yield on_page(messages), messages, _progress(messages, turns)
        steps = None if steps is None else steps - 1
    for _ in itertools.count() if steps is None else range(steps):
        asker_next = not messages or messages[-1]["role"] == "assistant"
        if asker_next and _human_turns(messages) >= turns:
            yield on_page(messages), messages, f"**Done**: {_in_words(turns)} each."
            return
        who, role = (ASKER, "user") if asker_next else (CHAT, "assistant")
        text = status = ""
        writing = f"{who.name} is writing …"
        yield in_progress(messages, role, "", ""), messages, writing
        for text, status in turn(who, messages, temperature):
            if PAUSED.pop(request.session_hash, False):
                paused = f"Paused after {_in_words(_human_turns(messages))}."
                yield on_page(messages), messages, paused
                return
            yield in_progress(messages, role, text, status), messages, writing
        words, over = ended(text) if asker_next else (text.strip(), False)
        if not words and not asker_next:
            raise gr.Error(f"{CHAT.name} wrote nothing.")
        messages = [*messages, noted(role, words, status)] if words else messages
        yield on_page(messages), messages, _progress(messages, turns)
        if over:
            yield (
                on_page(messages),
                messages,
                "**The asker has ended the conversation** after "
                f"{_in_words(_human_turns(messages))}.",
            )
            return


def ask_to_pause(request: gr.Request) -> None:
    """The conversation of this visitor stops at the next word, and takes the unfinished turn back
    by itself.
    """
    PAUSED[request.session_hash] = True
    while len(PAUSED) > 1000:  # of visitors who pressed it while nothing was running
        PAUSED.pop(next(iter(PAUSED)), None)


def one_step(
    messages: Messages, opening: str, turns: float, temperature: float, request: gr.Request
) -> Iterator[tuple[Any, ...]]:
    """One turn of whoever is next."""
    yield from converse(messages, opening, turns, temperature, request, steps=1)


def _human_turns(messages: Messages) -> int:
    return sum(m["role"] == "user" for m in messages)


def _in_words(turns: float) -> str:
    return "1 turn" if turns == 1 else f"{turns:.0f} turns"


def _progress(messages: Messages, turns: float) -> str:
    return f"Turn {_human_turns(messages)} of {int(turns)}."


def exported(messages: Messages, how: str) -> str:
    """The conversation as a JSON file, in the shape that the dialogues dataset has."""
    if not messages:
        raise gr.Error("There is nothing to keep yet.")
    people = {
        "watch": {"user": ASKER.repo_id, "assistant": CHAT.repo_id},
        "be": {"user": ASKER.repo_id},
    }[how]
    _forget_old_files()
    path = Path(tempfile.mkdtemp(dir=DOWNLOADS)) / "dialogue.json"
    path.write_text(
        json.dumps(
            {"messages": spoken(messages), "written_by": people}, indent=1, ensure_ascii=False
        ),
        "utf-8",
    )
    return str(path)


def _forget_old_files() -> None:
    """Remove what was written to be fetched an hour ago and more; the page has its own copy."""
    for folder in DOWNLOADS.iterdir():
        if time.time() - folder.stat().st_mtime > 3600:
            shutil.rmtree(folder, ignore_errors=True)


# 3. Who is human?


@cache
def real_conversations() -> list[Messages]:
    """Held-out conversations of real people, in which some human turn follows an answer."""
    from datasets import load_dataset

    source = SETTINGS["conversations"]
    rows = load_dataset(source["repo_id"], split=source["split"], streaming=True)
    conversations = [list(row["messages"]) for row in itertools.islice(rows, 400)]
    return [
        m
        for m in conversations
        if _human_turns(m) >= 2 and all(len(turn["content"]) < 1500 for turn in m[:3])
    ]


LOOKING = "Looking for a real conversation …"


def new_round(temperature: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:
    """Show a real conversation up to a human turn; write the asker's turn; shuffle the two."""
    try:
        LIMIT.check(request)
        yield [], LOOKING, "", "", {}
        conversation = random.choice(real_conversations())
    except gr.Error as error:
        yield [], f"{FAILED} {error.message}", "", "", {}
        return
    except (OSError, ValueError, IndexError):
        said = "The real conversations cannot be read right now; try again later."
        yield [], f"{FAILED} {said}", "", "", {}
        return
    before, real = conversation[:2], conversation[2]["content"]
    yield before, "The asker is writing its turn …", "", "", {}
    try:
        words, _ = ended(whole_turn(ASKER, before, temperature))
    except gr.Error as error:
        yield before, f"{FAILED} {error.message}", "", "", {}
        return
    pair = [("human", _clipped(real)), ("asker", _clipped(words or "(it says nothing and leaves)"))]
    random.shuffle(pair)
    who = ["person" if kind == "human" else ASKER.repo_id for kind, _ in pair]
    about = ballot("who-is-human", json.dumps([before, sorted(text for _, text in pair)]), *who)
    yield (
        before,
        "Which one did a person write?",
        pair[0][1],
        pair[1][1],
        {
            **about,
            "answer": [kind for kind, _ in pair],
            "words": [len(text.split()) for _, text in pair],
        },
    )


def offered(current: dict[str, Any]) -> tuple[gr.Button, gr.Button, gr.Button]:
    """The buttons: there is something to choose only while two turns are shown."""
    pick = gr.Button(interactive=bool(current))
    return pick, pick, gr.Button("New round")


def _clipped(text: str) -> str:
    return text if len(text) <= 600 else text[:600] + " …"


def guess(place: int) -> Callable[..., tuple[str, list[int], dict[str, Any]]]:
    """What a button does: say whether the guess was right, keep the score, and the vote."""

    def guessed(
        current: dict[str, Any], score: list[int], request: gr.Request
    ) -> tuple[str, list[int], dict[str, Any]]:
        if not current.get("answer"):
            raise gr.Error("Press New round for another one.")
        right = current["answer"][place] == "human"
        score = [score[0] + right, score[1] + 1]
        verdict = "Right: a person wrote that." if right else "No: the asker wrote that one."
        person = "AB"[current["answer"].index("human")]
        words, note = current["words"], ""
        try:
            kept = VOTES.cast(
                current,
                ("left", "right")[place],
                request,
                left_words=words[0],
                right_words=words[1],
            )
            note = f" {KEPT}" if kept else ""
        except VoteRefusedError as error:
            note = f" {error}"
        said = (
            f"{person} is the person's turn, {'BA'['AB'.index(person)]} is {ASKER.name}'s. "
            f"{score[0]} of {score[1]} so far; guessing blindly gives half.{note}"
        )
        return f"**{verdict}** {said}", score, {}

    return guessed


# For programs


def next_turn(conversation: list[dict[str, str]], temperature: float = 0.7) -> str:
    """What the person says next, as the asker imagines it; an empty string when it would end the
    conversation.

    Args:
        conversation: Messages with role (user: the person, assistant: the chat model) and content;
        may be empty. temperature: 0 for always the likeliest token, higher for more variety.
    """
    LIMIT.check(None)
    messages = messages_of(conversation)
    if messages and messages[-1]["role"] == "user":
        raise gr.Error(
            "The last message is the person's own; the asker has nothing to ask until it is "
            "answered."
        )
    return ended(whole_turn(ASKER, messages, temperature))[0]


AFTER = ", after [{title}]({url})".format(**SETTINGS["paper"]) if SETTINGS["paper"] else ""

with gr.Blocks(title=f"{ASKER.name}: be the assistant", delete_cache=(3600, 7200)) as demo:
    gr.Markdown(
        f"# {ASKER.name}\nA model of the *human* side of conversations{AFTER}. It asks; it does "
        f"not answer. "
        f"What asks: {ASKER.about}. What answers it: {CHAT.about}."
    )
    # The line under a conversation says what goes on; Gradio's own marks would hide the
    # conversation behind "Error".
    quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    heat = gr.Slider(0, 1.5, ASKER.temperature, step=0.05, label="Temperature", render=False)
    tabs = gr.Tabs(overflow_behavior="wrap")  # on a phone, a menu would hide what there is to do
    with tabs, gr.Tab("Be the assistant", id="be"):
        mine = gr.State([])
        talk = TextChatbot(label="You are the assistant", elem_id="be", height="45vh",
                           buttons=["copy"],
                           placeholder="Press Start, and the asker opens. Or give it a topic "
                                       "first.")  # fmt: skip
        status = gr.Markdown("", elem_id="be-status")
        with gr.Row(elem_classes="stack-on-phone"):
            topic = gr.Textbox(
                placeholder="Your own first question (optional)",
                show_label=False,
                scale=3,
                elem_id="topic",
            )
            start = gr.Button("Start", variant="primary", elem_id="start")
        reply = gr.Textbox(
            placeholder="Answer as the assistant would, then press Enter", show_label=False,
            submit_btn=True, elem_id="reply",
        )  # fmt: skip
        with gr.Row():
            again = gr.Button("Ask something else", size="sm", elem_id="again")
            back = gr.Button("Take my answer back", size="sm", elem_id="back")
            halt = gr.Button("Stop", size="sm", elem_id="be-stop", elem_classes="on-escape")
            keep = gr.DownloadButton("Keep as JSON", size="sm", elem_id="be-keep")
        shown = [talk, mine, status]
        runs = [
            start.click(open_conversation, [topic, heat], shown, **quietly),
            topic.submit(open_conversation, [topic, heat], shown, **quietly),
            reply.submit(answer_it, [mine, reply, heat], [*shown, reply], **quietly),
            again.click(ask_again, [mine, heat], shown, **quietly),
        ]
        back.click(take_back, mine, shown, cancels=runs, api_visibility="private")
        talk.clear(lambda: ([], ""), None, [mine, status], cancels=runs, api_visibility="private")
        stopped = halt.click(
            lambda: None, None, None, cancels=runs, queue=False, api_visibility="private"
        )
        # Only then, or a last word under way would write over it.
        stopped.then(lambda m: (swapped(m), "Stopped."), mine, [talk, status], **quietly)
    with tabs, gr.Tab("Watch them talk", id="watch"):
        theirs = gr.State([])
        stage = TextChatbot(label=f"{CHAT.name} (left) and {ASKER.name} (right)", elem_id="watch",
                            height="45vh", buttons=["copy"])  # fmt: skip
        news = gr.Markdown("", elem_id="watch-status")
        opening = gr.Textbox(
            label="First question",
            placeholder="Leave it empty and the asker opens",
            elem_id="opening",
        )
        gr.Examples(TOPICS, opening, label="For instance")
        with gr.Row():
            go = gr.Button(START, variant="primary", elem_id="go")
            step = gr.Button("One step", elem_id="step")
            pause = gr.Button("Pause", elem_id="pause", elem_classes="on-escape")
            fresh = gr.Button("Start again", elem_id="fresh")
            save = gr.DownloadButton("Keep as JSON", elem_id="watch-keep")
        turns = gr.Slider(
            1, MAX_TURNS, SETTINGS["turns"], step=1, label="Turns of the asker", elem_id="turns"
        )
        scene, given = [stage, theirs, news], [theirs, opening, turns, heat]
        talking = [
            go.click(converse, given, scene, **quietly, concurrency_limit=2),
            step.click(one_step, given, scene, **quietly, concurrency_limit=2),
        ]
        pause.click(ask_to_pause, None, None, queue=False, api_visibility="private")
        stage.clear(
            lambda: ([], ""), None, [theirs, news], cancels=talking, api_visibility="private"
        )
        fresh.click(lambda: ([], [], ""), None, scene, cancels=talking, api_visibility="private")
    with tabs, gr.Tab("Who is human?", id="blind"):
        gr.Markdown(
            "A real conversation, cut off. One of the two next turns is the person's own, one "
            "is the asker's. " + VOTES.notice,
            elem_id="blind-notice",
        )
        current, score = gr.State({}), gr.State([0, 0])
        scene_before = TextChatbot(
            label="A real conversation",
            elem_id="blind",
            height="35vh",
            buttons=[],
            placeholder="Press Start: the beginning of one stands here.",
        )
        verdict = gr.Markdown("", elem_id="verdict")
        with gr.Row(elem_classes="stack-on-phone"):
            first = gr.Textbox(label="A", interactive=False, lines=4, elem_id="turn-a")
            second = gr.Textbox(label="B", interactive=False, lines=4, elem_id="turn-b")
        with gr.Row():
            picks = [
                gr.Button(
                    f"{label} is the person",
                    elem_id=f"pick-{label.lower()}",
                    elem_classes="chooses",
                    interactive=False,
                )
                for label in "AB"
            ]
            deal = gr.Button(START, variant="primary", elem_id="deal")
        # By the page itself, so that a server that is busy or asleep is not waited for.
        deal.click(None, None, verdict, js=f"() => {json.dumps(LOOKING)}", **quietly)
        deal.click(new_round, [heat], [scene_before, verdict, first, second, current], **quietly)
        for place, button in enumerate(picks):
            button.click(guess(place), [current, score], [verdict, score, current], **quietly)
        current.change(offered, current, [*picks, deal], **quietly, queue=False)
    with gr.Accordion("Settings", open=False):
        heat.render()
    mine.change(lambda m: exported(m, "be") if m else None, mine, keep, api_visibility="private")
    theirs.change(lambda m: gr.Button(GO_ON if m else START), theirs, go, **quietly, queue=False)
    theirs.change(
        lambda m: exported(m, "watch") if m else None, theirs, save, api_visibility="private"
    )
    gr.api(next_turn, api_name="next_turn")

if __name__ == "__main__":
    prepare(ASKER, CHAT)
    launch(demo)
