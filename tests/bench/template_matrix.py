"""``python tests/bench/template_matrix.py``: which real chat templates are exact in both seats.

Writes tests/bench/results/templates.json: for each template and seat whether it was derived, prints
the same as the base's own, carries loss on exactly the seat's turns, and can be stopped on; or why
it is refused. Reads the templates that TRL ships, and with ``--llama-cpp`` those of llama.cpp's
source distribution (downloaded once), or those below a folder (``--folder``)."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "bench")]

import figures  # noqa: E402
from support import real_templates  # noqa: E402

from hubkit.chat_templates import (  # noqa: E402
    IGNORE,
    Layout,
    SeatTemplates,
    derive,
    encode_segments,
)
from hubkit.conversation import Message, Seat, swap_roles  # noqa: E402
from hubkit.errors import TemplateError  # noqa: E402

SEATS: tuple[Seat, Seat] = ("user", "assistant")
CONVERSATION: list[Message] = [
    {"role": "user", "content": "What does <s> or <|im_end|> mean?"},
    {"role": "assistant", "content": "It ends a turn: </s>."},
    {"role": "user", "content": "Thanks [/INST]"},
    {"role": "assistant", "content": "You are welcome."},
]


def row(name: str, source: str, origin: str) -> dict[str, Any]:
    """What holds of one template."""
    result: dict[str, Any] = {"template": name, "from": origin}
    base = real_templates.base_template(source)
    try:
        tags = real_templates.tags_in(source)
        layout, notes = derive(base, tags)
    except TemplateError as error:
        return {**result, "derived": False, "refused": str(error)}
    layout = replace(layout, thinking=None, past_thinking=None)
    tokenizer = real_templates.tokenizer_with(tags)
    templates = SeatTemplates(layout, "derived", base, frozenset(tags), notes=tuple(notes))
    return {
        **result,
        "derived": True,
        "notes": notes,
        **{seat: of_seat(templates, tokenizer, seat) for seat in SEATS},
    }


def of_seat(templates: SeatTemplates, tokenizer: Any, seat: Seat) -> dict[str, Any]:
    """What holds of one seat: exact text, exact mask, and what ends its turns."""
    proof = templates.proofs[seat]
    if not proof.holds:
        return {"exact": False, "refused": proof.faults[0]}
    return {
        "exact": True,
        "compared": proof.checked,
        "mask_exact": mask_is_exact(templates, tokenizer, seat),
        "stop": templates.end_token(seat) or templates.stop_texts(seat)[0],
        "stop_is_token": templates.end_token(seat) is not None,
        "examples_per_conversation": len(templates.examples(view_of(seat), seat)),
    }


def view_of(seat: Seat) -> list[Message]:
    """The conversation as `seat` sees it."""
    return swap_roles(CONVERSATION) if seat == "user" else CONVERSATION


def mask_is_exact(templates: SeatTemplates, tokenizer: Any, seat: Seat) -> bool:
    """Whether loss falls on the seat's turns and their ends and on nothing else, and no typed
    control token is one."""
    layout, view = templates.layout, view_of(seat)
    own = [m["content"] for m in view if m["role"] == "assistant"]
    expected, carried = [], []
    texts = templates.examples(view, seat)
    for index, text in enumerate(own):
        last = len(texts) > 1 or index == len(own) - 1
        expected.append((own_lead(layout, seat, last), text, own_end(layout, seat, last)))
    control = {tokenizer.token_to_id(t): t for t in templates.tokens}
    for segments in texts:
        labels = [i for i in encode_segments(tokenizer, segments).labels if i != IGNORE]
        carried.append(tokenizer.decode(labels, skip_special_tokens=False))
        ends = sum(marks_in(end, control.values()) for _, _, end in expected)
        leads = sum(marks_in(lead, control.values()) for lead, _, _ in expected)
        marks = sum(i in control for i in labels)
        if marks != (ends + leads) // (len(expected) if len(texts) > 1 else 1):
            return False
    return "".join(carried) == "".join("".join(parts) for parts in expected)


def own_lead(layout: Layout, seat: Seat, last: bool) -> str:
    """What the seat writes before its text: the rest of its header after the prompt."""
    if seat == "user":
        return layout.user[len(layout.seat_prompt("user")) :]
    header, prompt = layout.last_header if last else layout.assistant, layout.seat_prompt(seat)
    return header[len(prompt) :] if header.startswith(prompt) else header[len(header.rstrip(" ")) :]


def own_end(layout: Layout, seat: Seat, last: bool) -> str:
    """What the seat writes after its text."""
    if seat == "user":
        return layout.user_end
    return layout.last_end if last else layout.assistant_end


def marks_in(text: str, tokens: Any) -> int:
    """How many control tokens a tokenizer reads in `text`."""
    return sum(text.count(token) for token in tokens)


def matrix(sources: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The table over `sources`, templates by name by where they come from; each text once."""
    seen: set[str] = set()
    rows = []
    for origin, templates in sources.items():
        for name, source in templates.items():
            if source not in seen:
                seen.add(source)
                rows.append(row(name, source, origin))
    exact = [r for r in rows if r["derived"] and all(r[seat]["exact"] for seat in SEATS)]
    masks = [r for r in exact if all(r[seat]["mask_exact"] for seat in SEATS)]
    return {
        "templates": len(rows),
        "exact_in_both_seats": len(exact),
        "mask_exact_in_both_seats": len(masks),
        "share_exact": round(len(exact) / len(rows), 4),
        "rows": rows,
    }


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", metavar="CACHE", help="also llama.cpp's, cached here")
    parser.add_argument("--folder", action="append", default=[], help="also those below a folder")
    options = parser.parse_args()
    sources = {"trl": real_templates.trl_templates()}
    if options.llama_cpp:
        cache = Path(options.llama_cpp)
        sources["llama.cpp"] = real_templates.llama_cpp_templates(cache)
    for folder in options.folder:
        sources[Path(folder).name] = real_templates.folder_templates(Path(folder))
    table = matrix(sources)
    figures.write(
        "templates",
        "Real chat templates in both seats: derived, exact, loss on exactly the seat's turns, and "
        "what ends them.",
        "python tests/bench/template_matrix.py --llama-cpp CACHE",
        table,
        add=False,
    )
    print({key: value for key, value in table.items() if key != "rows"})
    for entry in table["rows"]:
        if not entry["derived"] or not all(entry[seat]["exact"] for seat in SEATS):
            print("refused:", entry["template"], entry.get("refused") or [entry[s] for s in SEATS])
        elif not all(entry[seat]["mask_exact"] for seat in SEATS):
            print("mask:", entry["template"], [entry[seat] for seat in SEATS])


if __name__ == "__main__":
    main()
