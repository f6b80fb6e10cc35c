"""Which is better? Two models answer a visitor's own conversation, unnamed, until the visitor
chooses."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from models import Model, ModelError, stream
from page import RateLimit, TextChatbot, aside, checked, failure, messages_of
from votes import KEPT, VoteRefusedError, Votes, ballot

Messages = list[dict[str, Any]]
LABELS = ("A", "B")


class Comparison:
    """The tab: `models` in an order drawn anew for every conversation, and where votes go."""

    def __init__(self, models: tuple[Model, Model], votes: Votes, limit: RateLimit) -> None:
        self.models, self.votes, self.limit = models, votes, limit

    def say(
        self, message: str, left: Messages, right: Messages, draw: dict[str, Any],
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Put one message to both, each in its own conversation; what keeps it from being put is
        said under them, which an error would hide, and the message stays in its box."""
        try:
            if draw.get("choice"):
                raise gr.Error(
                    f"You have chosen. Press *Start again* for another one. {self._reveal(draw)}"
                )
            text = checked(message)
            self.limit.check(request)
        except gr.Error as error:
            yield left, right, message, draw, f"⚠️ {error.message}"
            return
        draw = draw or {"id": uuid.uuid4().hex, "swapped": random.random() < 0.5}
        draw = {key: draw[key] for key in ("id", "swapped")}  # nothing to choose before all is said
        turn = {"role": "user", "content": text}
        sides: list[Messages] = [[*messages_of(left), turn], [*messages_of(right), turn]]
        for at, who in enumerate(self._in_order(draw)):
            history, name = sides[at], f"Model {LABELS[at]}"
            yield *sides, "", draw, f"{name} is writing …"
            for reply in self._answer(who, history, name):
                sides[at] = [*history, *reply]
                yield *sides, "", draw, f"{name} is writing …"
        draw = {**draw, **ballot("which-is-better", draw["id"], *self._names(draw))}
        yield *sides, "", draw, "Go on, or choose."

    def _answer(self, who: Model, history: Messages, name: str) -> Iterator[Messages]:
        """What is written so far, again and again, with a note below an answer that was cut off;
        the model's name stays out of errors too.
        """
        text, is_cut = "", False
        try:
            for piece in stream(
                who, messages_of(history), temperature=who.temperature, top_p=who.top_p,
                max_tokens=who.max_tokens,
            ):  # fmt: skip
                text += piece.text
                is_cut = is_cut or piece.is_cut
                status = piece.status.replace(who.name, name)
                yield [{"role": "assistant", "content": text} if text else aside(f"*{status}*")]
        except ModelError as error:
            yield [failure(str(error).replace(who.name, name))]
            return
        if not text.strip():
            yield [failure(f"{name} wrote nothing.")]
        elif is_cut:
            note = f"*Cut off at {who.max_tokens} tokens.*"
            yield [{"role": "assistant", "content": text}, aside(note)]

    def choose(self, choice: str) -> Callable[..., tuple[Any, ...]]:
        """What a button does: keep the vote, and say who was who."""

        def chosen(
            draw: dict[str, Any], left: Messages, right: Messages, request: gr.Request
        ) -> tuple[dict[str, Any], str]:
            if not draw.get("pair") or draw.get("choice"):
                raise gr.Error("Write something to both first, or press Start again.")
            sides = [messages_of(left), messages_of(right)]
            if any(not side or side[-1]["role"] != "assistant" for side in sides):
                raise gr.Error("One of them has not answered; write again before you choose.")
            who = self._reveal(draw)
            words = [sum(len(m["content"].split()) for m in s if m["role"] == "assistant")
                     for s in sides]  # fmt: skip
            turns = sum(m["role"] == "user" for m in sides[0])
            try:
                kept = self.votes.cast(
                    draw, choice, request, turns=turns, left_words=words[0], right_words=words[1]
                )
            except VoteRefusedError as error:
                return {**draw, "choice": choice}, f"{error} {who}"
            return {**draw, "choice": choice}, f"{f'{KEPT} ' if kept else ''}{who}"

        return chosen

    @staticmethod
    def offered(draw: dict[str, Any]) -> list[gr.Button]:
        """The buttons to choose with, which do something once both have answered, and once only."""
        return [gr.Button(interactive=bool(draw.get("pair")) and not draw.get("choice"))] * 3

    def _reveal(self, draw: dict[str, Any]) -> str:
        models = zip(LABELS, self._in_order(draw), strict=True)
        return " and ".join(f"{label} was **{model.link}**" for label, model in models) + "."

    def _in_order(self, draw: dict[str, Any]) -> tuple[Model, Model]:
        first, second = self.models
        return (second, first) if draw["swapped"] else (first, second)

    def _names(self, draw: dict[str, Any]) -> tuple[str, str]:
        first, second = self._in_order(draw)
        return first.repo_id, second.repo_id

    def build(self) -> None:
        """Lay the tab out, inside an open `gr.Tab`."""
        gr.Markdown(
            "Two models, unnamed. Have a conversation of your own with both, then choose. "
            + self.votes.notice,
            elem_id="blind-notice",
        )
        draw = gr.State({})
        with gr.Row(elem_classes="stack-on-phone"):
            left, right = (
                TextChatbot(label=f"Model {label}", elem_id=f"blind-{label.lower()}",
                            height="40vh", min_width=280, buttons=["copy"])
                for label in LABELS
            )  # fmt: skip
        news = gr.Markdown("", elem_id="blind-status")
        box = gr.Textbox(
            placeholder="Write to both, then press Enter", show_label=False, elem_id="blind-both",
            submit_btn=True,
        )  # fmt: skip
        quietly: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        with gr.Row():
            buttons = [
                (
                    gr.Button(
                        text,
                        elem_id=f"choose-{choice}",
                        elem_classes="chooses",
                        interactive=False,
                    ),
                    choice,
                )
                for text, choice in (
                    ("A is better", "left"), ("They are alike", "tie"), ("B is better", "right")
                )
            ]  # fmt: skip
            fresh = gr.Button("Start again", elem_id="blind-fresh")
        run = box.submit(self.say, [box, left, right, draw], [left, right, box, draw, news],
                         concurrency_limit=2, **quietly)  # fmt: skip
        for button, choice in buttons:
            button.click(self.choose(choice), [draw, left, right], [draw, news], **quietly)
        draw.change(self.offered, draw, [button for button, _ in buttons], queue=False, **quietly)
        fresh.click(lambda: ([], [], {}, ""), None, [left, right, draw, news], cancels=[run],
                    api_visibility="private")  # fmt: skip
