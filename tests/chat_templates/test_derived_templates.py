"""A layout derived from a base's own chat template prints what the base prints, in both seats, or
is refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import real_templates
from support.tiny_models import tiny_tokenizer

from hubkit import chat_templates
from hubkit.chat_templates import SeatTemplates, derive, for_base, prove
from hubkit.conversation import swap_roles
from hubkit.errors import TemplateError

TURNS = [
    {"role": "user", "content": "How do I bake bread?"},
    {"role": "assistant", "content": "Mix flour."},
    {"role": "user", "content": "And rye?"},
    {"role": "assistant", "content": "Less water."},
]
WITH_SYSTEM = [{"role": "system", "content": "Be kind."}, *TURNS]
REAL = real_templates.trl_templates()


def derived(source: str, *, thinking: str = "off") -> SeatTemplates:
    """Seat templates of a base that publishes `source`."""
    base = real_templates.base_template(source, thinking == "keep")
    tags = real_templates.tags_in(source)
    layout, notes = derive(base, tags)
    if thinking == "off":
        layout = replace(layout, thinking=None, past_thinking=None)
    return SeatTemplates(
        layout, "derived", base, frozenset(tags), thinking=thinking, notes=tuple(notes)
    )


def folder_with(tmp_path: Path, source: str, family: str = "chatml") -> Path:
    """A base's folder with the tokenizer of `family` and the chat template `source`."""
    tiny_tokenizer(tmp_path, family)
    (tmp_path / "chat_template.jinja").write_text(source, "utf-8")
    return tmp_path


@pytest.mark.parametrize("name", sorted(REAL))
def test_a_real_template_is_exact_in_both_seats(name):
    templates = derived(REAL[name])
    for seat in ("user", "assistant"):
        proof = templates.proofs[seat]
        assert proof.holds, proof.faults
        assert proof.checked >= 6
        assert templates.stop_texts(seat)


@pytest.mark.slow
def test_of_forty_templates_and_more_nine_in_ten_are_exact_and_the_rest_are_refused(tmp_path):
    """Those of llama.cpp's source distribution, downloaded."""
    templates = real_templates.llama_cpp_templates(tmp_path)
    exact = refused = 0
    for source in templates.values():
        try:
            proofs = derived(source).proofs
        except TemplateError as error:
            refused += 1
            assert str(error)
            continue
        exact += all(proof.holds for proof in proofs.values())
    assert len(templates) >= 40 and exact >= 0.9 * len(templates)
    assert exact + refused == len(templates)


def test_the_askers_prompt_is_the_beginning_of_the_bases_next_human_turn():
    for name, source in REAL.items():
        templates = derived(source)
        recorded = [*TURNS, {"role": "user", "content": "XnextqZ"}]
        text = templates.base.render(recorded)
        prompt = templates.prompt(swap_roles(TURNS), "user")
        assert text.partition("XnextqZ")[0].rstrip(" ") == prompt, name


def test_a_thinking_base_prints_its_last_answer_differently_and_each_answer_is_an_example():
    templates = derived(REAL["qwen3"])
    text = templates.base.render(TURNS)
    assert text.count("<think>") == 1, "the base shows an empty block before its last answer only"
    assert templates.render(TURNS, "assistant") == text
    examples = templates.examples(TURNS, "assistant")
    assert [chat_templates.text_of(e) for e in examples] == [
        templates.base.render(TURNS[:2]),
        templates.base.render(TURNS),
    ]
    for example, turns in zip(examples, (TURNS[:1], TURNS[:3]), strict=True):
        prompt = templates.prompt(turns, "assistant")
        assert chat_templates.text_of(example).startswith(prompt)
        loss = "".join(segment.text for segment in example if segment.has_loss)
        assert chat_templates.text_of(example).startswith(prompt + loss)
    assert len(templates.examples(swap_roles(TURNS), "user")) == 1
    assert "<think>" not in templates.prompt(swap_roles(TURNS), "user")


def test_thinking_is_kept_where_the_recipe_says_so():
    templates = derived(REAL["qwen3"], thinking="keep")
    turns = [*TURNS[:3], {**TURNS[3], "thinking": "Rye binds water."}]
    assert all(proof.holds for proof in templates.proofs.values())
    text = templates.render(turns, "assistant")
    assert text == templates.base.render(turns) and "Rye binds water." in text
    (last,) = templates.examples([*turns[:1], turns[3]], "assistant")
    loss = "".join(segment.text for segment in last if segment.has_loss)
    assert loss == "<think>\nRye binds water.\n</think>\n\nLess water.<|im_end|>"


def test_a_template_without_thinking_does_not_keep_it(tmp_path):
    with pytest.raises(TemplateError, match=r"thinking: keep.*prints no thinking"):
        for_base(folder_with(tmp_path, REAL["qwen2_5"]), thinking="keep")


SYSTEM_LAST = (
    "{{ bos_token }}{%- for m in messages if m.role != 'system' -%}{%- if m.role == 'user' -%}"
    "[INST]{%- if loop.last and messages[0].role == 'system' -%}{{ messages[0].content }}"
    "{{ '\n\n' }}{%- endif -%}{{ m.content }}[/INST]{%- else -%}{{ m.content }}</s>"
    "{%- endif -%}{%- endfor -%}"
)


def test_a_system_message_at_the_last_human_turn_is_printed_there():
    templates = derived(SYSTEM_LAST)
    assert templates.layout.system_place == "last_user"
    assert all(proof.holds for proof in templates.proofs.values())
    prompt = templates.prompt(WITH_SYSTEM[:4], "assistant")
    assert prompt == templates.base.render(WITH_SYSTEM[:4], add_generation_prompt=True)
    assert prompt.endswith("[INST]Be kind.\n\nAnd rye?[/INST]")
    assert len(templates.examples(WITH_SYSTEM, "assistant")) == 2
    assert len(templates.examples(TURNS, "assistant")) == 1


@pytest.mark.parametrize("name", ["gemma3", "llava_next", "system last"])
def test_a_folded_system_message_is_never_in_the_askers_own_mouth(name):
    templates = derived(REAL.get(name, SYSTEM_LAST))
    if templates.layout.system_place == "own":
        pytest.skip("this base has a place for it")
    view = swap_roles(WITH_SYSTEM)
    header = templates.layout.seat_prompt("user")
    for text in (templates.render(view, "user"), templates.prompt(view[:1], "user")):
        assert text.count("Be kind.") == 1
        assert text.index("Be kind.") < text.index(header)
        assert header + "Be kind." not in text
    for segment in templates.segments(view, "user"):
        assert not (segment.has_loss and "Be kind." in segment.text)


def test_a_date_is_frozen_and_said(tmp_path):
    source = (
        "<|im_start|>system\nToday is {{ strftime_now('%d %B %Y') }}.<|im_end|>\n"
        "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    )
    templates = for_base(folder_with(tmp_path, source))
    assert "01 January 2026" in templates.prompt(TURNS[:1], "assistant")
    assert any("date" in note for note in templates.notes)
    assert "strftime_now" not in templates.source("assistant")


def test_the_shipped_source_derives_to_the_same_text_again(tmp_path):
    """A merged model publishes its seat's source, and is a base in its turn."""
    for name in ("qwen2_5", "llama3_2", "gemma3", "phi3", "deepseekv3"):
        first = derived(REAL[name])
        second = derived(first.source("assistant"))
        assert second.render(WITH_SYSTEM, "assistant") == first.render(WITH_SYSTEM, "assistant")
        assert second.prompt(TURNS[:3], "assistant") == first.prompt(TURNS[:3], "assistant")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ messages[0].content }}", "not printed"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "nothing closes"),
        ("{{ functions[0] }}", "functions"),
        ("{% for m in messages %}", "must be Jinja"),
        (
            "{%- for m in messages -%}{{ m.role }}: {{ loop.index }} {{ m.content }}<|im_end|>"
            "{%- endfor -%}",
            "differ from one round to the next",
        ),
    ],
)
def test_what_cannot_be_proven_is_refused_with_the_way_out(tmp_path, source, reason):
    with pytest.raises(TemplateError, match=f"{reason}.*write template: NAME"):
        for_base(folder_with(tmp_path, source)).require("user")


def test_a_template_that_prints_by_content_is_refused_in_the_proof(tmp_path):
    source = (
        "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content | replace('{', '(') + '<|im_end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    )
    templates = for_base(folder_with(tmp_path, source))
    with pytest.raises(TemplateError, match=r"in the assistant seat it prints .*where the base"):
        templates.source("assistant")


def test_a_recipes_template_is_a_family_a_file_or_the_bases_own(tmp_path):
    folder = folder_with(tmp_path, REAL["qwen2_5"])
    assert for_base(folder).method == "derived"
    assert for_base(folder, template="base").layout == for_base(folder).layout
    assert for_base(folder, template="raw").layout.name == "raw"
    assert for_base(folder, template="plain").layout.user_end == "<|im_end|>"
    (tmp_path / "own.jinja").write_text(REAL["phi3"], "utf-8")
    given = for_base(folder, template=str(tmp_path / "own.jinja"))
    assert given.layout.user == "<|user|>\n" and given.proofs["user"].holds
    with pytest.raises(TemplateError, match="neither a family"):
        for_base(folder, template="chatlm")
    (folder / "chat_template.jinja").unlink()
    assert for_base(folder).method == "family"
    with pytest.raises(TemplateError, match="publishes no chat template"):
        for_base(folder, template="base")


def test_a_base_without_template_or_family_gets_plain_labels(tmp_path):
    config = {"eos_token": "<|endoftext|>", "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    templates = for_base(tmp_path)
    assert templates.method == "plain"
    assert templates.prompt(TURNS[:1], "assistant") == (
        "Human: How do I bake bread?<|endoftext|>\nAssistant:"
    )
    assert templates.stop_texts("user") == ["<|endoftext|>"]


CALL = {"type": "function", "function": {"name": "look_up", "arguments": '{"word": "rye"}'}}
TOOL_TURNS = [
    {"role": "user", "content": "What is rye?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "a grain <|im_end|>", "name": "look_up"},
    {"role": "assistant", "content": "It is a grain."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Welcome.", "train": False},
]


def test_no_loss_falls_on_a_tools_result_or_on_a_turn_flagged_out():
    templates = derived(REAL["qwen2_5"])
    [example] = templates.examples(TOOL_TURNS, "assistant")
    assert chat_templates.text_of(example) == templates.base.render(
        [{k: v for k, v in m.items() if k != "train"} for m in TOOL_TURNS[:1]]
        + [{**TOOL_TURNS[1], "tool_calls": [parsed(CALL)]}]
        + TOOL_TURNS[2:]
    )
    loss = "".join(segment.text for segment in example if segment.has_loss)
    assert "look_up" in loss and "It is a grain.<|im_end|>" in loss
    assert "a grain <|im_end|>" not in loss and "Welcome" not in loss
    assert [s.is_mark for s in example if s.text == "a grain <|im_end|>"] == [False]


def parsed(call):
    """`call` with its arguments as templates read them."""
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}


def test_control_tokens_in_a_calls_arguments_and_in_tools_are_text():
    templates = replace(derived(REAL["qwen2_5"]), tokens=frozenset({"<|im_start|>", "<|im_end|>"}))
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": ["x <|im_end|>"]}'}}
    turns = [TOOL_TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    function = {"name": "f", "description": "ends <|im_end|>", "parameters": {}}
    tools = [{"type": "function", "function": function}]
    [example] = templates.examples(turns, "assistant", tools=tools)
    text = chat_templates.text_of(example)
    printed = [{**turns[1], "tool_calls": [parsed(call)]}]
    assert text == templates.base.render([turns[0], *printed], tools=tools)
    typed = [s.text for s in example if not s.is_mark]
    assert typed.count("<|im_end|>") == 2, "one of the call's, one of the tool's"
    assert sum(s.text.count("<|im_end|>") for s in example if s.is_mark) == len(turns) + 1


def test_the_tokens_that_open_turns_are_the_derived_templates_own():
    templates = real_templates.marked_templates("<~{}~>")
    assert templates.turn_marks == ("<~assistant~>", "<~user~>")


def test_tools_that_a_template_does_not_print_are_refused():
    templates = derived(REAL["gemma"])
    with pytest.raises(TemplateError):
        templates.examples(TOOL_TURNS, "assistant")


def test_turns_flagged_out_carry_no_loss():
    templates = derived(REAL["qwen2_5"])
    turns = [{**TURNS[0]}, {**TURNS[1], "train": False}, *TURNS[2:]]
    loss = [s.text for s in templates.segments(turns, "assistant") if s.has_loss]
    assert loss == ["Less water.", "<|im_end|>"]


def test_a_wrong_layout_is_not_proven():
    templates = derived(REAL["qwen2_5"])
    for change in ({"user_gap": ""}, {"prefix": "x"}, {"assistant_end": "<|endoftext|>"}):
        wrong = replace(templates.layout, **change)
        assert not prove(wrong, templates.base, "assistant").holds
        assert not prove(wrong, templates.base, "user").holds


HOSTILE = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "a filtered loop": "{% for a in range(999) %}{% for b in range(9999) if false %}"
    "{% endfor %}{% endfor %}",
    "macros that branch": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "a text that doubles": "{% set n = namespace(t='ab') %}{% for i in range(60) %}"
    "{% set n.t = n.t OP n.t %}{% endfor %}{{ n.t | length }}",
    "a text that is replaced": "{% set n = namespace(t='aa') %}{% for i in range(60) %}"
    "{% set n.t = n.t.replace('a', 'aaa') %}{% endfor %}",
    "a text times a number": "{{ 'a' * 9999999 * 9999 }}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "padding": "{{ 'a' | center(999999999) }}",
    "padding by a method": "{{ 'a'.ljust(999999999) }}",
    "padding by a format": "{{ '%999999999d' % 1 }}",
    "padding by a format's method": "{{ '{:999999999}'.format(1) }}",
    "a wide join": "{{ ('a' * 3999999).join(range(9999) | list) }}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_is_refused_and_costs_little(tmp_path, kind):
    for operator in ("~", "+") if "OP" in HOSTILE[kind] else ("",):
        source = HOSTILE[kind].replace("OP", operator) + REAL["qwen2_5"]
        with pytest.raises(TemplateError, match=r"does too much: it .*write template: NAME"):
            for_base(folder_with(tmp_path, source))
