"""Which is better? Two models answer a visitor's own conversation, unnamed, until the visitor
chooses."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from models import Model, ModelError, stream
from page import RateLimit, TextChatbot, aside, checked, messages_of
from votes import VoteRefusedError, Votes, ballot

Messages = list[dict[str, Any]]
LABELS = ("A", "B")


class Comparison:
    """The tab: `models` in an order drawn anew for every conversation, and where votes go."""

    def __init__(self, models: tuple[Model, Model], votes: Votes, limit: RateLimit) -> None:
        self.models, self.votes, self.limit = models, votes, limit

    def say(
        self, message: str, left: Messages, right: Messages, drawn: dict[str, Any],
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Put one message to both, each in its own conversation."""
        self.limit.check(request)
        if drawn.get("choice"):
            raise gr.Error("You have chosen. Press Start again for another conversation.")
        drawn = drawn or {"id": uuid.uuid4().hex, "swapped": random.random() < 0.5}
        said = {"role": "user", "content": checked(message)}
        sides: list[Messages] = [[*messages_of(left), said], [*messages_of(right), said]]
        yield *sides, "", drawn, "Both are writing …"
        for at, who in enumerate(self._drawn(drawn)):
            asked = sides[at]
            for shown in self._answer(who, asked, f"Model {LABELS[at]}"):
                sides[at] = [*asked, shown]
                yield *sides, "", drawn, "Both are writing …"
        drawn = {**drawn, **ballot("which-is-better", drawn["id"], *self._names(drawn))}
        yield *sides, "", drawn, "Go on, or choose."

    def _answer(self, who: Model, asked: Messages, name: str) -> Iterator[dict[str, Any]]:
        """What is written so far, again and again; the model's name stays out of errors too."""
        text = ""
        try:
            for piece in stream(
                who, messages_of(asked), temperature=who.temperature, top_p=who.top_p,
                max_tokens=who.max_tokens,
            ):  # fmt: skip
                text += piece.text
                status = piece.status.replace(who.name, name)
                yield {"role": "assistant", "content": text} if text else aside(f"*{status}*")
        except ModelError as error:
            yield aside(str(error).replace(who.name, name))
            return
        if not text.strip():
            yield aside(f"{name} wrote nothing.")

    def choose(self, choice: str) -> Callable[..., tuple[Any, ...]]:
        """What a button does: keep the vote, and say who was who."""

        def chosen(
            drawn: dict[str, Any], left: Messages, right: Messages, request: gr.Request
        ) -> tuple[dict[str, Any], str]:
            if not drawn.get("pair") or drawn.get("choice"):
                raise gr.Error("Write something to both first, or press Start again.")
            sides = [messages_of(left), messages_of(right)]
            if any(not side or side[-1]["role"] != "assistant" for side in sides):
                raise gr.Error("One of them has not answered; write again before you choose.")
            who = " and ".join(
                f"{label} was **{name}**"
                for label, name in zip(LABELS, self._names(drawn), strict=True)
            )
            words = [sum(len(m["content"].split()) for m in s if m["role"] == "assistant")
                     for s in sides]  # fmt: skip
            turns = sum(m["role"] == "user" for m in sides[0])
            try:
                kept = self.votes.cast(
                    drawn, choice, request, turns=turns, left_words=words[0], right_words=words[1]
                )
            except VoteRefusedError as error:
                return {**drawn, "choice": choice}, f"{error} {who}."
            return {**drawn, "choice": choice}, f"{'Kept, thank you: ' if kept else ''}{who}."

        return chosen

    def _drawn(self, drawn: dict[str, Any]) -> tuple[Model, Model]:
        first, second = self.models
        return (second, first) if drawn["swapped"] else (first, second)

    def _names(self, drawn: dict[str, Any]) -> tuple[str, str]:
        first, second = self._drawn(drawn)
        return first.repo_id, second.repo_id

    def build(self) -> None:
        """Lay the tab out, inside an open `gr.Tab`."""
        gr.Markdown(
            "Two models, unnamed. Have a conversation of your own with both, then choose. "
            + self.votes.notice,
            elem_id="blind-notice",
        )
        drawn = gr.State({})
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
                (gr.Button(text, elem_id=f"choose-{choice}"), choice)
                for text, choice in (
                    ("A is better", "left"), ("They are alike", "tie"), ("B is better", "right")
                )
            ]  # fmt: skip
            fresh = gr.Button("Start again", size="sm", elem_id="blind-fresh")
        run = box.submit(self.say, [box, left, right, drawn], [left, right, box, drawn, news],
                         concurrency_limit=2, **quietly)  # fmt: skip
        for button, choice in buttons:
            button.click(self.choose(choice), [drawn, left, right], [drawn, news], **quietly)
        fresh.click(lambda: ([], [], {}, ""), None, [left, right, drawn, news], cancels=[run],
                    api_visibility="private")  # fmt: skip
