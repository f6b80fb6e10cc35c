"""What both pages share: text that stays text, a limit on how fast one person may ask, and the
launch.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import gradio as gr
from gradio.components.chatbot import TextMessage

PER_MINUTE = int(os.environ.get("RATE_PER_MINUTE", "20"))
MAX_CHARS = int(os.environ.get("MAX_MESSAGE_CHARS", "4000"))
_PEOPLE = 10_000  # addresses remembered at a time
_ASIDE = "aside"

# Phones: no margins to waste, nothing wider than the screen, buttons that a thumb can hit.
CSS = """
.gradio-container {max-width: 960px !important; margin: 0 auto !important}
@media (max-width: 640px) {
  .gradio-container {padding: 8px !important; width: 100vw !important; max-width: 100vw !important}
  .gradio-container main, .gradio-container .column,
  .gradio-container .row > * {min-width: 0 !important}
  .gradio-container .row {flex-wrap: wrap}
  .gradio-container .row > button {flex: 1 1 45%}
  .gradio-container .stack-on-phone {flex-direction: column}
  .gradio-container .stack-on-phone > * {flex: none; width: 100%}
  .gradio-container .row:has(> .column #chat) {flex-direction: column-reverse}
  .gradio-container .row:has(> .column #chat) > .column {flex: none !important; width: 100%}
  .gradio-container > .main,
  .gradio-container .wrap:not(.tab-container, .tab-wrapper) {padding: 4px}
  .gradio-container .placeholder {padding-inline: 12px}
  .gradio-container #chat {min-height: 420px}
  button {min-height: 40px}
  /* Two conversations and the box below them, all in sight. */
  .gradio-container #left, .gradio-container #right,
  .gradio-container #blind-a, .gradio-container #blind-b {
    height: 27vh !important; min-height: 150px !important}
  .gradio-container #both, .gradio-container #blind-both {
    position: sticky; bottom: 0; z-index: 5}
  .tab-container button[role=tab] {padding: 4px 5px !important; font-size: 13px}
}
/* Of what is shown beside something else, one part alone cannot be cleared. */
:is(#blind, #left, #right, #blind-a, #blind-b) button[aria-label=Clear] {display: none}
/* Until the box takes text again, Gradio's Retry would ask what was asked one turn before. */
body:has(#message textarea:disabled) #chat button:is(
  [aria-label=Retry], [aria-label=Undo], [aria-label=Edit]) {pointer-events: none; opacity: .4}
/* What scrolls ends below the label. */
[role=log] {box-sizing: border-box; border-top: 34px solid transparent !important}
.gradio-container button.example {border: 1px solid var(--neutral-500) !important}
.gradio-container .input-container:has(> .no-label) {
  border: 1px solid var(--neutral-500); border-radius: var(--input-radius)}
.gradio-container .input-container > .no-label {
  padding-inline: 10px !important; border-radius: inherit}
/* Gradio's accent is too faint for text, on either ground. */
button[role=tab][aria-selected=true] {color: #4338ca !important}
.dark button[role=tab][aria-selected=true] {color: #a5b4fc !important}
"""

THEME = gr.themes.Soft().set(  # with the contrast that text needs
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    input_placeholder_color="*neutral_600",
    input_placeholder_color_dark="*neutral_300",
    block_label_text_color="*primary_700",
    block_title_text_color="*primary_700",
    # What can be written into or pressed has an edge to be seen.
    input_border_width="1px",
    input_border_color="*neutral_500",
    input_border_color_dark="*neutral_400",
    button_border_width="1px",
    button_secondary_border_color="*neutral_500",
    button_secondary_border_color_dark="*neutral_400",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_hover_dark="*primary_700",
    link_text_color="*secondary_700",
    link_text_color_visited="*secondary_700",
    link_text_color_dark="*secondary_300",
    link_text_color_active_dark="*secondary_300",
    link_text_color_hover_dark="*secondary_200",
    link_text_color_visited_dark="*secondary_300",
)

# Escape stops what is being written, wherever the keyboard is.
ESCAPE = """
// A page of its own takes the keyboard at once; inside another page that would scroll to here.
if (self === top) {
  let waits = 100;
  const timer = setInterval(() => {
    const box = document.querySelector("#message textarea");
    if (box && document.activeElement === document.body) box.focus();
    if (box || --waits === 0) clearInterval(timer);
  }, 100);
}
// Whoever stops an answer writes next: the keyboard goes back to the box, once it takes text.
// Whoever has chosen goes on: the buttons to choose with take no keyboard any more.
const BOXES = {
  "stop-both": "#both textarea", "be-stop": "#reply textarea", "pause": "#go",
  "pick-a": "#deal", "pick-b": "#deal", "choose-left": "#blind-fresh",
  "choose-tie": "#blind-fresh", "choose-right": "#blind-fresh",
};
addEventListener("click", (event) => {
  const button = event.target.closest?.(".stop-button, .on-escape, .chooses");
  if (!button) return;
  const place = BOXES[button.id] ?? "#message textarea";
  let tries = 30;
  const timer = setInterval(() => {
    const box = document.querySelector(place);
    if (box && !box.disabled) box.focus();
    if (document.activeElement === box || --tries === 0) clearInterval(timer);
  }, 100);
}, true);
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const button of document.querySelectorAll(".stop-button, .on-escape")) {
    if (button.offsetParent) button.click();
  }
});
"""

_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)


def shown(text: str) -> str:
    """`text` such that a page shows its tags as typed: ``<`` is written as an entity, except in
    code.
    """
    parts = _CODE.split(text)
    return "".join(part if i % 2 else part.replace("<", "&#60;") for i, part in enumerate(parts))


def typed(text: str) -> str:
    """The text behind `shown`."""
    return text.replace("&#60;", "<")


class TextChatbot(gr.Chatbot):
    """A chatbot in which tags, from people or models, are text. Markdown and code blocks still
    work.
    """

    def get_block_name(self) -> str:
        """The page uses Gradio's own chatbot."""
        return "chatbot"

    def _postprocess_content(self, chat_message: Any) -> Any:
        if isinstance(chat_message, dict) and chat_message.get("type") == "text":
            chat_message = chat_message["text"]
        content = super()._postprocess_content(chat_message)
        return (
            TextMessage(text=shown(content.text)) if isinstance(content, TextMessage) else content
        )

    def _preprocess_content(self, chat_message: Any) -> Any:
        content = super()._preprocess_content(chat_message)
        return (
            {**content, "text": typed(content["text"])}
            if content.get("type") == "text"
            else content
        )


def text_of(content: Any) -> str:
    """The text of a message's content, in whichever of Gradio's shapes it comes."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return str(content.get("text", ""))
    return "".join(text_of(part) for part in content or [])


def aside(text: str) -> dict[str, Any]:
    """A message in a conversation that nobody in it has said: what is being waited for, or what
    went wrong. It is marked as such, and reaches no model.
    """
    return {"role": "assistant", "content": text, "metadata": {"id": _ASIDE}}


def messages_of(history: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Plain ``{role, content}`` messages out of a chatbot's history, without an `aside` and what it
    stands below.
    """
    messages: list[dict[str, str]] = []
    for message in history:
        if (message.get("metadata") or {}).get("id") != _ASIDE:
            messages.append({"role": str(message["role"]), "content": text_of(message["content"])})
        elif messages and messages[-1]["role"] == "user":  # it got no answer
            messages.pop()
    return messages


def failure(text: str) -> dict[str, Any]:
    """An `aside` about what went wrong, not to be taken for a model's words."""
    return aside(f"⚠️ **This page, not the model:** {text}")


def cut_off(tokens: int) -> str:
    """The note on an answer that reached its longest length."""
    return f"Cut off at {tokens} tokens."


class RateLimit:
    """At most `per_minute` questions from one address; a bucket that refills as time passes."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, request: gr.Request | None) -> None:
        """Count one question. Raises `gr.Error`, saying how long to wait, when it is one too
        many.
        """
        now = time.monotonic()
        visitor = address(request)
        with self._lock:
            tokens, then = self._left.pop(visitor, (float(self.per_minute), now))
            tokens = min(float(self.per_minute), tokens + (now - then) * self.per_minute / 60)
            allowed = tokens >= 1
            self._left[visitor] = (tokens - 1 if allowed else tokens, now)
            while len(self._left) > _PEOPLE:
                self._left.popitem(last=False)
        if not allowed:
            wait_s = (1 - tokens) * 60 / self.per_minute
            raise gr.Error(
                f"That is more than {self.per_minute} messages a minute. Wait {wait_s:.0f} seconds."
            )


def address(request: gr.Request | None) -> str:
    """Who asks. After a Space's proxy the client's address is the last one that the proxy itself
    has added.
    """
    if request is None:
        return "unknown"
    forwarded = request.headers.get("x-forwarded-for", "") if os.environ.get("SPACE_ID") else ""
    if forwarded:
        return str(forwarded.split(",")[-1].strip())
    return str(request.client.host) if request.client else "unknown"


def checked(text: str) -> str:
    """`text` without blank ends. Raises `gr.Error` when it is empty or too long."""
    text = (text or "").strip()
    if not text:
        raise gr.Error("Write something first.")
    if len(text) > MAX_CHARS:
        raise gr.Error(f"That is {len(text):,} characters; at most {MAX_CHARS:,} fit. Shorten it.")
    return text


def launch(demo: gr.Blocks) -> None:
    """Start the page, with its API, and as an MCP server where the package for it is installed."""
    demo.queue(default_concurrency_limit=int(os.environ.get("CONCURRENCY", "4")), max_size=64)
    demo.launch(
        # Not css=, which is rewritten to reach no further than the content.
        head=f"<style>{CSS}</style><script>{ESCAPE}</script>",
        theme=THEME,
        mcp_server=importlib.util.find_spec("mcp") is not None,
        footer_links=["api", "gradio"],
        ssr_mode=False,
    )
