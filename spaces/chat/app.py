"""Chat with the trained model, and compare it with the base that it was trained from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import gradio as gr
from blind import Comparison
from models import Model, ModelError, model, prepare, settings, stream
from page import (
    PER_MINUTE,
    RateLimit,
    TextChatbot,
    aside,
    checked,
    cut_off,
    failure,
    launch,
    messages_of,
    text_of,
)
from votes import Votes

SETTINGS = settings()
CHAT, BASE = model("chat", SETTINGS), model("base", SETTINGS)
MODELS: dict[str, Model] = {CHAT.name: CHAT, "Its base": BASE}
EXAMPLES = [
    "What should I see in Lisbon in two days?",
    "Explain recursion to a ten-year-old.",
    "Write a polite note to a neighbour about noise.",
    "Give me three ideas for dinner with rice and eggs.",
]
LIMIT = RateLimit(PER_MINUTE)
Shown = str | dict[str, Any] | list[dict[str, Any]]
"""What a chatbot takes as the reply: text, a message, or several."""


def answer(
    message: str,
    history: list[dict[str, Any]],
    who: str,
    system: str,
    temperature: float,
    top_p: float,
    max_tokens: float,
    request: gr.Request,
) -> Iterator[tuple[Shown, str]]:
    """What `chat` does, for the page: what goes wrong is said in the conversation, which can go on
    after it, and the message stands in its box again.

    An error that left this function would end the chain of events that gives the message box back.
    """
    try:
        LIMIT.check(request)
        messages = [*messages_of(history), {"role": "user", "content": checked(message)}]
        for piece in _streamed(
            MODELS[who], _with_system(messages, system), temperature, top_p, max_tokens
        ):
            yield piece, ""
    except gr.Error as error:
        yield failure(error.message), message


def chat(
    message: str,
    history: list[dict[str, Any]] = [],  # noqa: B006
    who: str = CHAT.name,
    system: str = "",
    temperature: float = CHAT.temperature,
    top_p: float = CHAT.top_p,
    max_tokens: int = CHAT.max_tokens,
) -> Iterator[str]:
    """Answer a message in a conversation, streaming: each time all that is written so far.

    Args:
        message: What the person says now.
        history: The conversation so far: messages with role (user or assistant) and content.
        who: The model that answers: the trained one, by its name, or "Its base".
        system: A system message; empty for the model's own.
        temperature: 0 for always the likeliest token, higher for more variety.
        top_p: Draw only from the likeliest tokens that add up to this probability.
        max_tokens: The longest answer, in tokens.
    """
    LIMIT.check(None)
    if who not in MODELS:
        raise gr.Error(
            f"There is no model {who[:40]!r} here, only {' and '.join(map(repr, MODELS))}."
        )
    messages = [*messages_of(history), {"role": "user", "content": checked(message)}]
    for piece in _streamed(
        MODELS[who], _with_system(messages, system), temperature, top_p, max_tokens
    ):
        if isinstance(piece, str):
            yield piece


def _with_system(messages: list[dict[str, str]], system: str) -> list[dict[str, str]]:
    return (
        [{"role": "system", "content": system.strip()}, *messages] if system.strip() else messages
    )


def _streamed(
    who: Model, messages: list[dict[str, str]], temperature: float, top_p: float, max_tokens: float
) -> Iterator[Shown]:
    """What is written so far, again and again; an `aside` stands there until the first word, and
    below an answer that was cut off. Raises `gr.Error`.
    """
    so_far, is_cut = "", False
    try:
        for piece in stream(
            who, messages, temperature=temperature, top_p=top_p, max_tokens=int(max_tokens)
        ):
            so_far += piece.text
            is_cut = is_cut or piece.is_cut
            yield so_far or aside(f"*{piece.status}*")
    except ModelError as error:
        raise gr.Error(str(error), duration=None) from error  # stays until it is read
    if not so_far.strip():
        raise gr.Error(f"{who.name} wrote nothing. Try again, or at a higher temperature.")
    if is_cut:
        note = f"{cut_off(int(max_tokens))} For longer answers: Settings, *Longest answer*."
        yield [{"role": "assistant", "content": so_far}, aside(f"*{note}*")]


def compare(
    message: str,
    left: list[dict[str, Any]],
    right: list[dict[str, Any]],
    temperature: float,
    top_p: float,
    max_tokens: float,
    request: gr.Request,
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]], str]]:
    """Put one message to both models, each in its own conversation; the trained one first, then its
    base.
    """
    LIMIT.check(request)
    said = {"role": "user", "content": checked(message)}
    sides: list[list[dict[str, Any]]] = [[*messages_of(left), said], [*messages_of(right), said]]
    yield sides[0], sides[1], ""
    for side, who in enumerate((CHAT, BASE)):
        asked = sides[side]
        try:
            for piece in _streamed(who, messages_of(asked), temperature, top_p, max_tokens):
                if isinstance(piece, str):
                    piece = {"role": "assistant", "content": piece}
                sides[side] = [*asked, *(piece if isinstance(piece, list) else [piece])]
                yield sides[0], sides[1], gr.skip()
        except gr.Error as error:  # the other side can still answer
            sides[side] = [*asked, failure(error.message)]
            yield sides[0], sides[1], message


def complete(
    message: str, system: str = "", temperature: float = 0.7, max_tokens: int = 256
) -> str:
    """Answer one message, with no conversation before it.

    Args:
        message: What to answer.
        system: A system message; empty for the model's own.
        temperature: 0 for always the likeliest token, higher for more variety.
        max_tokens: The longest answer, in tokens.
    """
    LIMIT.check(None)
    messages = _with_system([{"role": "user", "content": checked(message)}], system)
    pieces = _streamed(CHAT, messages, temperature, CHAT.top_p, max_tokens)
    return deque((piece for piece in pieces if isinstance(piece, str)), maxlen=1)[0]


def kept(conversations: list[list[dict[str, Any]]] | None) -> gr.Dataset:
    """The list of conversations that this browser has kept, each under its first words."""
    first = (
        text_of(conversation[0]["content"]) for conversation in conversations or [] if conversation
    )
    return gr.Dataset(samples=[[text if len(text) <= 40 else f"{text[:40]}…"] for text in first])


def sampling(*, render: bool) -> list[gr.Slider]:
    """The three knobs, at the values that the recipe's rollout used."""
    return [
        gr.Slider(0, 1.5, CHAT.temperature, step=0.05, label="Temperature", render=render),
        gr.Slider(0.05, 1, CHAT.top_p, step=0.05, label="Top-p", render=render),
        gr.Slider(
            16, 1024, CHAT.max_tokens, step=16, label="Longest answer (tokens)", render=render
        ),
    ]


AFTER = ", after [{title}]({url})".format(**SETTINGS["paper"]) if SETTINGS["paper"] else ""

with gr.Blocks(title=f"Chat with {CHAT.name}", fill_height=True, delete_cache=(3600, 7200)) as demo:
    gr.Markdown(
        f"# Chat with {CHAT.name}\n"
        f"Trained on dialogues that an asker led with a chat model{AFTER}. "
        f"What answers: {CHAT.about}. "
        "It can be wrong: check what matters."
    )
    tabs = gr.Tabs(overflow_behavior="wrap")
    with tabs, gr.Tab("Chat", id="chat"):
        unanswered = gr.State("")  # what got no answer, until it stands in the box again
        talk = gr.ChatInterface(
            answer,
            chatbot=TextChatbot(
                label=CHAT.name,
                elem_id="chat",
                height="55vh",
                buttons=["copy"],
                placeholder="Ask something.",
            ),
            textbox=gr.Textbox(
                placeholder="Write, then press Enter",
                elem_id="message",
                submit_btn=True,
                stop_btn=True,
                autofocus=False,  # the page's script does, where that scrolls nothing
            ),
            additional_outputs=[unanswered],
            additional_inputs=[
                gr.Radio(
                    list(MODELS), value=CHAT.name, label="Who answers", elem_id="who", render=False
                ),
                gr.Textbox(
                    "", label="System message", placeholder=CHAT.system or "none", render=False
                ),
                *sampling(render=False),
            ],
            additional_inputs_accordion=gr.Accordion("Settings", open=False, render=False),
            examples=[[example] for example in EXAMPLES],
            cache_examples=False,
            save_history=True,
            editable=True,
            api_visibility="private",
            # Shown, it would hide the conversation behind "Error"; a sentence says what went wrong.
            show_progress="hidden",
            concurrency_limit=4,
        )
    with tabs, gr.Tab("Beside its base", id="compare"):
        with gr.Row(elem_classes="stack-on-phone"):
            left = TextChatbot(
                label=CHAT.name, elem_id="left", height="45vh", min_width=280, buttons=["copy"]
            )
            right = TextChatbot(label=f"Its base: {BASE.repo_id}", elem_id="right", height="45vh",
                                min_width=280, buttons=["copy"])  # fmt: skip
        both = gr.Textbox(
            placeholder="Write to both, then press Enter",
            show_label=False,
            elem_id="both",
            submit_btn=True,
        )
        with gr.Row():
            stop = gr.Button("Stop", size="sm", elem_id="stop-both", elem_classes="on-escape")
            clear = gr.Button("Start again", size="sm")
        with gr.Accordion("Settings", open=False):
            knobs = sampling(render=True)
        run = both.submit(
            compare,
            [both, left, right, *knobs],
            [left, right, both],
            api_visibility="private",
            concurrency_limit=2,
            show_progress="hidden",
        )
        stop.click(None, cancels=[run])
        clear.click(lambda: ([], []), None, [left, right], cancels=[run], api_visibility="private")
    with tabs, gr.Tab("Which is better?", id="blind"):
        Comparison((CHAT, BASE), Votes(), LIMIT).build()
    # A key drawn anew at each start would make what a browser has kept unreadable after a restart
    # of the Space.
    talk.saved_conversations.secret = "kept-in-browser."
    # The interface empties the box when an answer ends, and keeps the conversation after that.
    talk.saved_conversations.change(
        lambda text: (text or gr.skip(), ""),
        unanswered,
        [talk.textbox, unanswered],
        api_visibility="private",
        show_progress="hidden",
    )
    # Inside tabs, the interface does not hear that the page has loaded, so it is told what the
    # browser has kept.
    demo.load(kept, talk.saved_conversations, talk.chat_history_dataset, api_visibility="private")
    gr.api(chat, api_name="chat", concurrency_limit=4)
    gr.api(complete, api_name="complete")

if __name__ == "__main__":
    prepare(CHAT, BASE)
    launch(demo)
