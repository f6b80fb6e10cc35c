"""Renders chat templates in a process of its own, with bounded memory, that may be killed at any
time.

A chat template is an untrusted program: jinja's sandbox keeps it away from Python's objects, but
not from looping for an hour or from multiplying a string until memory is gone. So the server starts
this file as a script, sends one JSON object per line and kills the process when an answer takes too
long.

First line: {"templates": {name: {"template": str, "bos_token": str | null, "eos_token": … }}}.
Then {"name": str, "messages": [...], "tools": [...] | null} → {"text": str} or {"error": str}.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

MEMORY_LIMIT_BYTES = 512 * 1024 * 1024
OUTPUT_LIMIT_CHARS = 4_000_000


def environment() -> Any:
    """The sandbox that transformers gives a chat template: same options, filters and globals."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any
    ) -> str:
        sort_keys, separators = bool(options.get("sort_keys")), options.get("separators")
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def strftime_now(layout: str) -> str:
        return datetime.now().strftime(layout)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return env


def without_generation_marks(template: str) -> str:
    """TGI removes exactly these two spellings; any other spelling is a syntax error there, and so
    it is here.
    """
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def render(template: Any, variables: Mapping[str, Any]) -> dict[str, str]:
    """One answer: the text, or why there is none."""
    pieces, size = [], 0
    try:
        for piece in template.generate(**variables):
            size += len(piece)
            if size > OUTPUT_LIMIT_CHARS:
                return {"error": f"the template writes more than {OUTPUT_LIMIT_CHARS} characters"}
            pieces.append(piece)
    except MemoryError:
        return {"error": f"the template needs more than {MEMORY_LIMIT_BYTES >> 20} MiB"}
    except RecursionError:
        return {"error": "the template recurses too deeply"}
    except Exception as error:  # whatever the template raises is its own error
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    return {"text": "".join(pieces)}


def main() -> None:
    """Serve lines until end of file."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    env = environment()
    sources = json.loads(sys.stdin.buffer.readline())["templates"]
    compiled: dict[str, Any] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        source = sources[request.pop("name")]
        text = source["template"]
        try:
            if text not in compiled:
                compiled[text] = env.from_string(without_generation_marks(text))
            tokens = {"bos_token": source["bos_token"], "eos_token": source["eos_token"]}
            answer = render(compiled[text], {**tokens, **request, "add_generation_prompt": True})
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
