"""Messages → prompt text, by the chat template of the repo that is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hubkit.errors import EngineError
from hubkit.local_engine import template_worker
from hubkit.untrusted import JsonObject, parse_json, text_in

_RENDER_TIMEOUT_S = 5.0
_LINE_LIMIT_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A repo's template and the two tokens it may print."""

    template: str
    bos_token: str | None
    eos_token: str | None


class TemplateError(EngineError):
    """A template refuses these messages, or misbehaves."""


def read_template(folder: Path, fallback: ChatTemplate | None = None) -> ChatTemplate | None:
    """The chat template in `folder` (chat_template.jinja, else tokenizer_config.json's), else
    `fallback`.
    """
    config = _tokenizer_config(folder)
    path = folder / "chat_template.jinja"
    text = (
        path.read_text(encoding="utf-8")
        if path.exists()
        else _default_of(config.get("chat_template"))
    )
    if text is None:
        return fallback
    bos, eos = _token(config.get("bos_token")), _token(config.get("eos_token"))
    if fallback:
        bos, eos = bos or fallback.bos_token, eos or fallback.eos_token
    return ChatTemplate(text, bos, eos)


def _tokenizer_config(folder: Path) -> JsonObject:
    try:
        config = parse_json((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise EngineError(
            f"{folder}/tokenizer_config.json is not JSON ({error}); push the tokenizer again"
        ) from error
    return config if isinstance(config, dict) else {}


def _default_of(template: Any) -> str | None:
    if isinstance(template, list):  # several named templates
        template = next(
            (item["template"] for item in template if item.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None


def _token(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


class TemplateRenderer:
    """Renders in a separate process; one that is stuck is killed and replaced."""

    def __init__(self, templates: dict[str, ChatTemplate]) -> None:
        self._served = {name: asdict(template) for name, template in templates.items()}
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def render(
        self, name: str, messages: list[JsonObject], tools: list[Any] | None = None
    ) -> str:
        """The prompt for `messages`, with the next turn opened, or the final assistant message left
        open.

        As in TGI a final assistant message is continued: the prompt is cut after its last
        occurrence and stripped of trailing whitespace. Raises `TemplateError`."""
        if name not in self._served:
            raise TemplateError(
                "this model has no chat template; use /generate, or push a chat_template.jinja"
            )
        answer = await self._ask({"name": name, "messages": messages, "tools": tools})
        if "error" in answer:
            raise TemplateError(answer["error"])
        text = answer["text"]
        if messages and messages[-1]["role"] == "assistant":
            content = text_in(messages[-1], "content")
            start = text.rfind(content)
            text = text if start < 0 else text[: start + len(content)].rstrip()
        return text

    async def check(self) -> None:
        """Compile every template. Raises `EngineError` for one that is not a template at all."""
        probe: list[JsonObject] = [{"role": "user", "content": "hello"}]
        for name in self._served:
            try:
                await self.render(name, probe)
            except TemplateError as error:
                if str(error).startswith("TemplateSyntaxError"):
                    raise EngineError(
                        f"the chat template of {name!r} does not compile ({error}); "
                        "mark the assistant's turns as exactly {% generation %} and "
                        "{% endgeneration %}"
                    ) from error

    async def close(self) -> None:
        """End the process."""
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._process = None

    async def _ask(self, request: JsonObject) -> dict[str, str]:
        line = json.dumps(request).encode() + b"\n"
        async with self._turn:
            try:
                async with asyncio.timeout(_RENDER_TIMEOUT_S):
                    answer = await self._exchange(line)
            except TimeoutError:
                await self.close()
                return {"error": f"the template took more than {_RENDER_TIMEOUT_S:g} s"}
            except asyncio.CancelledError:
                await self.close()  # its answer would be taken for the next one's
                raise
            except (ConnectionError, ValueError):
                answer = b""
            if not answer:
                await self.close()
                return {"error": "the template broke the process that renders it (out of memory?)"}
        result: dict[str, str] = parse_json(answer)
        return result

    async def _exchange(self, line: bytes) -> bytes:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                template_worker.__file__,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=_LINE_LIMIT_BYTES,
            )
            self._stdin.write(json.dumps({"templates": self._served}).encode() + b"\n")
        self._stdin.write(line)
        await self._stdin.drain()
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    @property
    def _stdin(self) -> asyncio.StreamWriter:
        assert self._process is not None and self._process.stdin is not None
        return self._process.stdin
