"""Secrets and personal data behind JSON's escapes: found, masked, and the JSON stays JSON."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import sensitive_samples

from hubkit.conversation import Conversation
from hubkit.data.filters import FILTERS
from hubkit.data.filters.chain import Edit
from hubkit.sensitive_data import KINDS, Masker, mask, scan_text
from hubkit.sensitive_data.tables import SUFFIXES, mask_rows

EMAIL = "jane.doe@" + "university.edu"
TOKEN = "gh" + "p_" + "a1B2c3D4e5F6" * 3
PEM = (
    "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEowIBAAKCAQEA\nabcdefgh\n"
    "-----END RSA PRIVATE " + "KEY-----"
)
VALUES = {"email": EMAIL, "github_token": TOKEN, "private_key": PEM}


def _escaped(text: str, rng: random.Random) -> str:
    """A JSON string of `text`, each character written in one of the ways that JSON has for it."""
    parts = []
    for character in text:
        ways = [json.dumps(character)[1:-1]]
        if ord(character) < 0x10000:
            ways.append(f"\\u{ord(character):04x}")
        if character == "/":
            ways.append("\\/")
        parts.append(rng.choice(ways))
    return f'"{"".join(parts)}"'


WRAPPERS = {
    "an object": '{{"to": {}, "n": [1, 2.50, null]}}',
    "an array": '[true, {}, "end\\n"]',
    "a name": '{{{}: "x"}}',
    "indented": '{{\n  "a": {{"b": {}}},\n  "c": -1e5\n}}',
    "a string": "{}",
}


@settings(deadline=None)
@given(
    st.sampled_from(sorted(VALUES)),
    st.lists(st.sampled_from(sorted(WRAPPERS)), min_size=1, max_size=4),
    st.text(max_size=12),
    st.integers(0, 1 << 30),
)
def test_json_in_json_is_masked_however_it_is_escaped(
    kind: str, wrappers: list[str], around: str, seed: int
) -> None:
    rng = random.Random(seed)
    text = f"{around} {VALUES[kind]} {around}"
    for wrapper in wrappers:
        text = WRAPPERS[wrapper].format(_escaped(text, rng))
    assert kind in {finding.kind for finding in scan_text(text)}
    masked = mask(text)
    value: Any = masked
    for _ in wrappers:  # each level is still JSON
        value = _inner(json.loads(value))
    assert VALUES[kind] not in value and f"[{kind.upper()}]" in value
    assert kind not in {finding.kind for finding in scan_text(masked)}


def _inner(value: Any) -> str:
    """The one text in `value` that holds the others."""
    if isinstance(value, str):
        return value
    items = [*value, *value.values()] if isinstance(value, dict) else value
    found = [_inner(item) for item in items if isinstance(item, str | list | dict)]
    return max(found, key=len, default="")


@settings(deadline=None)
@given(st.data())
def test_whatever_is_masked_json_stays_json(data: st.DataObject) -> None:
    samples = [s.text for s in sensitive_samples.samples() if s.group != "look-alike"]
    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.sampled_from(samples),
        st.sampled_from([4539148803436467, EMAIL, PEM]),
    )  # fmt: skip
    names = st.sampled_from(["password", "api_key", "card", "id", "note", EMAIL, "a\nb"])
    tree = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(names, inner, max_size=3),
            inner.map(json.dumps),
        ),
        max_leaves=6,
    )
    value = data.draw(st.dictionaries(names, tree, max_size=3))
    text = json.dumps(value, indent=data.draw(st.sampled_from([None, 1])))
    masked = json.loads(mask(text))
    assert _shape(masked) == _shape(value) or EMAIL in str(value)


def _shape(value: Any) -> Any:
    """Names and places, without what stands there."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    return [_shape(item) for item in value] if isinstance(value, list) else None


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (f'{{"a": "hi\\n{EMAIL}"}}', '{"a": "hi\\n[EMAIL]"}'),
        (f'say {{"a": "x\\n{EMAIL}\\n"}}', 'say {"a": "x\\n[EMAIL]\\n"}'),
        ('{"card": 4539148803436467, "n": 1.50}', '{"card": "[CREDIT_CARD]", "n": 1.50}'),
        ('{"password": "hunt3r22\\"x9"}', '{"password": "[PASSWORD]"}'),
        (f'{{"a": 1}}\n{{"b": "{EMAIL}"}}\n', '{"a": 1}\n{"b": "[EMAIL]"}\n'),
        (f'{{"ü": "ü {EMAIL}"}}', '{"ü": "ü [EMAIL]"}'),
        ('{"e": "\\ud83d\\ude00 ' + EMAIL + '"}', '{"e": "\\ud83d\\ude00 [EMAIL]"}'),
    ],
)
def test_what_is_not_masked_stays_as_it_was_written(text: str, right: str) -> None:
    assert mask(text) == right


def test_a_finding_over_several_values_takes_them_whole() -> None:
    begin, end = PEM.split("\n")[0], PEM.split("\n")[-1]
    text = json.dumps({"a": begin + "\nMIIE", "b": "MIIEow", "c": end, "d": 5})
    masked = json.loads(mask(text))
    assert masked["d"] == 5 and "MIIE" not in str(masked)


def test_the_filters_mask_tool_calls_results_and_descriptions() -> None:
    hidden = EMAIL.replace("@", "\\u0040")
    call = {"name": "send", "arguments": f'{{"to": "{hidden}", "body": "a\\/b"}}'}
    messages: list[Any] = [
        {"role": "user", "content": "Write to her."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call}],
        },
        {"role": "tool", "content": json.dumps({"log": json.dumps({"to": hidden})})},
        {"role": "assistant", "content": "Done."},
    ]
    row = Conversation("a", messages, "s", {"tools": f'[{{"description": "{hidden}"}}]'})
    edit = FILTERS["personal_data"]()(row)
    assert isinstance(edit, Edit) and edit.note == ("masked_email",)
    (made,) = edit.rows
    arguments = made.messages[1]["tool_calls"][0]["function"]["arguments"]
    assert arguments == '{"to": "[EMAIL]", "body": "a\\/b"}'
    assert "[EMAIL]" in json.loads(made.messages[2]["content"])["log"]
    assert json.loads(made.meta["tools"]) == [{"description": "[EMAIL]"}]
    assert FILTERS["personal_data"]()(made) is None


def test_what_was_masked_is_counted() -> None:
    masker = Masker()
    masker(f'{{"a": "{EMAIL}", "b": "{EMAIL} {TOKEN}"}}')
    assert masker.counts == {"email": 2, "github_token": 1}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_rows_is_written_again_only_where_something_is_masked(
    tmp_path: Path, suffix: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def written(text: str) -> Path:
        path = tmp_path / f"given{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table({"id": ["a"], "turns": [[text, "Yes."]]}), path)
        else:
            path.write_text(json.dumps({"id": "a", "turns": [text, "Yes."]}) + "\n")
        return path

    target, masker = tmp_path / f"masked{suffix}", Masker(KINDS)
    assert not mask_rows(written("Nothing of note."), target, masker) and not target.exists()
    assert mask_rows(written("Write to jane.doe@university.edu"), target, masker)
    assert target.exists() and sum(masker.counts.values()) == 1
