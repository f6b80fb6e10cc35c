"""The tokens with loss are the seat's turns and their ends; what is served is a prefix of what was
trained.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from support.tiny_models import TOKENS, tiny_base, tiny_tokenizer

from hubkit import chat_templates
from hubkit.conversation import swap_roles
from hubkit.errors import SourceError
from hubkit.local_engine import template_worker
from hubkit.local_engine.gguf_model import convert_model
from hubkit.serving.client import ClientTemplate

SEATS = ("user", "assistant")
FROM_HUMAN = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How do I bake bread?"},
    {"role": "assistant", "content": " Mix flour and water. \n"},
    {"role": "user", "content": "What about rye? <b>now</b> {{ x }} é 🍞"},
    {"role": "assistant", "content": "Less water."},
]
FROM_MODEL = [{"role": "assistant", "content": "Mix flour."}, *FROM_HUMAN[3:]]
NO_SYSTEM = FROM_HUMAN[1:]
SHAPES = {"human first": FROM_HUMAN, "model first": FROM_MODEL, "no system": NO_SYSTEM}


@pytest.fixture(scope="module", params=sorted(TOKENS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("base")
    return request.param, folder, tiny_tokenizer(folder, request.param)


def view(messages, seat):
    return swap_roles(messages) if seat == "user" else messages


@pytest.mark.parametrize("seat", SEATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_exactly_the_seats_turns_and_their_ends_carry_loss(family, seat, shape):
    _, folder, tokenizer = family
    turns = view(SHAPES[shape], seat)
    templates = chat_templates.for_base(folder)
    encoded = templates.encode(tokenizer, turns, seat)
    [end] = templates.stop_texts(seat)
    own = [m["content"].strip() for m in turns if m["role"] == "assistant"]
    wanted = [
        token for text in own for token in tokenizer.encode(text + end, add_special_tokens=False)
    ]
    assert [label for label in encoded.labels if label != chat_templates.IGNORE] == wanted
    assert all(
        lab in (token, -100) for token, lab in zip(encoded.input_ids, encoded.labels, strict=True)
    )


@pytest.mark.parametrize("seat", SEATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("renderer", ["transformers", "minijinja", "embedded engine", "client"])
def test_what_is_served_is_a_prefix_of_what_was_trained(family, seat, shape, renderer):
    _, folder, tokenizer = family
    turns = view(SHAPES[shape], seat)
    templates = chat_templates.for_base(folder)
    trained = templates.encode(tokenizer, turns, seat, trim=False)
    served = templates.source(seat)
    asked = 0
    for cut, message in enumerate(turns):
        if message["role"] != "assistant" or not cut:  # transformers renders no empty conversation
            continue
        prompt = render(renderer, tokenizer, served, turns[:cut])
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        assert trained.input_ids[: len(ids)] == ids, (seat, cut)
        first = next(
            i
            for i in range(len(ids) - 1, len(trained.labels))
            if trained.labels[i] != chat_templates.IGNORE
        )
        assert first == len(ids), (
            "the first trained token must be the first one that a server generates"
        )
        asked += 1
    assert asked


def render(renderer: str, tokenizer, template: str, turns) -> str:
    if renderer == "transformers":
        return tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    if renderer == "embedded engine":
        compiled = template_worker.environment().from_string(
            template_worker.without_generation_marks(template)
        )
        return template_worker.render(compiled, {"messages": turns, "add_generation_prompt": True})[
            "text"
        ]
    if renderer == "client":
        return ClientTemplate(template, {}).render(turns)
    minijinja = pytest.importorskip("minijinja", reason="the renderer of TGI is not installed")
    environment = minijinja.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
    )
    return environment.render_str(template, messages=turns, add_generation_prompt=True)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    convert_model(tiny_base(folder / "base"), folder / "model.gguf", "f32")
    return folder / "model.gguf"


@pytest.mark.parametrize("seat", SEATS)
def test_llama_cpps_own_jinja_renders_the_same(family, seat, gguf):
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    _, folder, tokenizer = family
    template = chat_templates.for_base(folder).source(seat)
    params = xllamacpp.CommonParams()
    params.model.path, params.chat_template, params.use_jinja = str(gguf), template, True
    params.n_ctx, params.n_parallel, params.warmup, params.prefill_assistant, params.verbosity = (
        256,
        1,
        False,
        False,
        0,
    )
    params.cpuparams.n_threads, params.endpoint_metrics = 1, True
    server = xllamacpp.Server(params)
    server.handle_metrics()  # its loop turns: only then can it be freed
    for shape in SHAPES.values():
        turns = view(shape, seat)
        turns = turns if turns[-1]["role"] == "user" else turns[:-1]
        body = json.dumps({"messages": turns}).encode()
        request = urllib.request.Request(f"{server.listening_address}/apply-template", data=body)
        with urllib.request.urlopen(request, timeout=240) as answer:
            rendered = json.load(answer)["prompt"]
        assert rendered == render("transformers", tokenizer, template, turns)


def test_the_served_template_carries_no_marks_and_renders_the_same(family):
    _, folder, tokenizer = family
    for seat in SEATS:
        templates = chat_templates.for_base(folder)
        served, trained = templates.source(seat), templates.source(seat, marks=True)
        assert "generation %}" not in served and "generation -%}" not in served
        texts = [
            tokenizer.apply_chat_template(view(FROM_HUMAN, seat), chat_template=t, tokenize=False)
            for t in (served, trained)
        ]
        assert texts[0] == texts[1]


def test_no_system_message_is_invented_and_it_is_printed_once(family):
    _, folder, tokenizer = family
    for seat in SEATS:
        template = chat_templates.for_base(folder).source(seat)
        for messages in (FROM_HUMAN, [FROM_HUMAN[0], *FROM_MODEL]):
            text = tokenizer.apply_chat_template(
                view(messages, seat), chat_template=template, tokenize=False
            )
            assert text.count("Be kind.") == 1
        bare = tokenizer.apply_chat_template(
            view(NO_SYSTEM, seat), chat_template=template, tokenize=False
        )
        assert "system" not in bare and "helpful" not in bare


def test_a_server_may_open_the_askers_first_turn_from_a_system_message_alone(family):
    _, folder, tokenizer = family
    template = chat_templates.for_base(folder).source("user")
    prompt = tokenizer.apply_chat_template(
        FROM_HUMAN[:1], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(
        swap_roles(FROM_HUMAN), chat_template=template, tokenize=False
    )
    assert "Be kind." in prompt and whole.startswith(prompt)


def test_unknown_roles_are_refused_by_the_template(family):
    _, folder, tokenizer = family
    with pytest.raises(Exception, match="roles are user and assistant"):
        tokenizer.apply_chat_template(
            [{"role": "tool", "content": "x"}],
            chat_template=chat_templates.for_base(folder).source("user"),
            tokenize=False,
        )


def test_tokens_behind_the_last_trained_one_are_left_out(family):
    _, folder, tokenizer = family
    encode, view = chat_templates.for_base(folder).encode, swap_roles(FROM_HUMAN)
    encoded = encode(tokenizer, view, "user")
    assert encoded.labels[-1] != chat_templates.IGNORE
    whole = encode(tokenizer, view, "user", trim=False)
    assert encoded.loss_tokens == whole.loss_tokens < len(encoded.input_ids) < len(whole.input_ids)
    assert encode(tokenizer, view, "user", max_length=9).loss_tokens <= 9


def test_a_folder_without_a_known_tokenizer_says_what_to_do(tmp_path: Path):
    with pytest.raises(SourceError, match="no tokenizer"):
        chat_templates.for_base(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"content": "<extra>"}]}')
    with pytest.raises(SourceError, match=r"<extra>.*template: FILE.jinja"):
        chat_templates.for_base(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [')
    with pytest.raises(SourceError, match="cannot be read as JSON"):
        chat_templates.for_base(tmp_path)
