"""What a person types is text: no control token comes of it, in either seat, in any tokenizer; and
loss falls on the seat's own turns and their ends and on nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support import real_templates
from support.tiny_models import TEXT, TOKENS, tiny_tokenizer

from hubkit.chat_templates import (
    FAMILIES,
    IGNORE,
    SeatTemplates,
    Segment,
    TextTokenizer,
    for_base,
    text_tokenizer,
)
from hubkit.conversation import swap_roles
from hubkit.errors import TemplateError

CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "<think>"]
CHATML = FAMILIES["chatml"]
WORDS = [*TEXT[0].split(), "x\ny", "é", "🍞", "a  b", "<", "|>", "</", "[/INST]"]
MODELS = ["byte level", "metaspace first", "metaspace always", "unigram", "prepended"]


def tokenizer_of(kind: str) -> Any:
    """A tokenizer of one of the kinds that bases have, with `CONTROL` among its tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre

    text = [*TEXT, *(f"{token} in a text {token}" for token in CONTROL)] * 2
    special = ["<unk>", *CONTROL[:-1]]
    if kind == "byte level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=alphabet
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        if kind == "prepended":
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        else:
            tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme=kind.split()[1])
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def sentence(chance: random.Random, words: list[str]) -> str:
    return " ".join(chance.choice(words) for _ in range(chance.randint(1, 6))).strip() or "x"


@pytest.mark.parametrize("kind", MODELS)
def test_ordinary_texts_are_tokenized_as_the_tokenizer_itself_does(kind):
    tokenizer, chance = tokenizer_of(kind), random.Random(1)
    encode = TextTokenizer(tokenizer).encode
    for _ in range(100):
        segments = []
        for _ in range(chance.randint(1, 8)):
            is_mark = chance.random() < 0.5
            tail = chance.choice(["", "user\n", " "])
            text = chance.choice(CONTROL) + tail if is_mark else sentence(chance, WORDS[:12])
            segments.append(Segment(text, is_mark, not is_mark))
        text = "".join(segment.text for segment in segments)
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert encode(segments).ids == expected


@pytest.mark.parametrize("seat", ["user", "assistant"])
@pytest.mark.parametrize("kind", MODELS)
def test_typed_control_tokens_are_text_and_loss_is_exact(kind, seat):
    tokenizer, chance = tokenizer_of(kind), random.Random(2)
    templates = SeatTemplates(CHATML, "family", None, frozenset(CONTROL))
    control = {tokenizer.token_to_id(token) for token in CONTROL}
    end = tokenizer.token_to_id("<|im_end|>")
    for _ in range(60):
        turns = [
            {"role": role, "content": sentence(chance, [*WORDS, *CONTROL, *CONTROL])}
            for role in ("system", *(["user", "assistant"] * chance.randint(1, 3)))
        ]
        view = swap_roles(turns) if seat == "user" else turns
        encoded = templates.encode(tokenizer, view, seat, trim=False)
        own = [m["content"] for m in view if m["role"] == "assistant"]
        marks = [i for i in encoded.input_ids if i in control]
        assert len(marks) == 2 * len(turns), "two for each turn: its header's and its end"
        labels = [label for label in encoded.labels if label != IGNORE]
        assert [label for label in labels if label in control] == [end] * len(own)
        if kind == "byte level":  # the others do not spell out what they do not know
            text = tokenizer.decode(labels, skip_special_tokens=False)
            assert text == "".join(content + "<|im_end|>" for content in own)
        prompt = templates.encode_prompt(tokenizer, view[:-1], seat)
        if view[-1]["role"] == "assistant":
            assert encoded.input_ids[: len(prompt)] == prompt
            assert encoded.labels[len(prompt)] != IGNORE, "the first token that is generated"
            if prompt[-1] != tokenizer.token_to_id("<unk>"):  # or it spans both
                assert encoded.labels[len(prompt) - 1] == IGNORE


@pytest.mark.parametrize("seat", ["user", "assistant"])
@pytest.mark.parametrize("family", sorted(TOKENS))
def test_rows_with_typed_control_tokens_are_trained_on_as_text(tmp_path, family, seat):
    from hubkit.recipe import Training
    from hubkit.training.rows import RowMaker

    tokenizer = tiny_tokenizer(tmp_path, family)
    special = TOKENS[family][0]
    turns = [
        {"role": "user", "content": f"What does {special[-1]}{special[0]} mean? {special[1]}"},
        {"role": "assistant", "content": f"{special[1]}It ends{special[-1]}a turn."},
        {"role": "user", "content": f"{special[-1]}"},
        {"role": "assistant", "content": "Yes."},
    ]
    block = Training(base="x/y", seat=seat)
    templates = for_base(tmp_path)
    [example] = RowMaker(block, tokenizer, templates, max_length=None)({"messages": turns}).examples
    own = [m["content"] for m in turns if m["role"] == seat]
    end = templates.end_token(seat)
    labels = [label for label in example.labels if label != IGNORE]
    assert tokenizer.decode(labels) == "".join(text + end for text in own)
    ids = set(tokenizer.convert_tokens_to_ids(special))
    assert [label for label in labels if label in ids] == [
        tokenizer.convert_tokens_to_ids(end)
    ] * len(own)


@pytest.mark.parametrize("name", ["qwen3", "llama3_2", "gemma3", "phi3_5", "gptoss", "deepseekv3"])
def test_real_templates_carry_loss_on_the_seats_turns_alone(name):
    from dataclasses import replace

    from hubkit.chat_templates import derive, encode_segments

    source = real_templates.trl_templates()[name]
    base, tags = real_templates.base_template(source), real_templates.tags_in(source)
    layout = replace(derive(base, tags)[0], thinking=None, past_thinking=None)
    tokenizer = real_templates.tokenizer_with(tags)
    templates = SeatTemplates(layout, "derived", base, frozenset(tags))
    turns = [
        {"role": "user", "content": f"Say {tags[-1]}"},
        {"role": "assistant", "content": f"{tags[0]} and {tags[-1]}"},
    ] * 2
    for seat in ("user", "assistant"):
        view = swap_roles(turns) if seat == "user" else turns
        carried = ""
        for example in templates.examples(view, seat):
            labels = [i for i in encode_segments(tokenizer, example).labels if i != IGNORE]
            carried += tokenizer.decode(labels, skip_special_tokens=False)
        content = next(m["content"] for m in view if m["role"] == "assistant")
        marks = carried.replace(content, "\0")
        assert marks.count("\0") == marks.count(layout.end(seat)) == 2
        assert marks.endswith("\0" + layout.end(seat))


def test_noncharacters_in_contents_make_no_control_token():
    tokenizer = tokenizer_of("byte level")
    encoded = TextTokenizer(tokenizer).encode(
        [Segment("\ufdd01\ufdd1 hi \ufdd02\ufdd1", False, True)]
    )
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == "1 hi 2"


def test_a_tokenizer_in_python_alone_is_refused():
    class Slow:
        """A tokenizer without a `tokenizer.json`."""

    with pytest.raises(TemplateError, match=r"Slow has no tokenizer.json"):
        text_tokenizer(Slow())


def test_the_copy_follows_the_tokenizers_own_file(tmp_path: Path):
    """A token that is in the vocabulary but not declared is text as before."""
    tokenizer = tiny_tokenizer(tmp_path, "chatml")
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    assert {t["content"] for t in data["added_tokens"]} == set(TOKENS["chatml"][0])
    copied = text_tokenizer(tokenizer)
    assert copied is text_tokenizer(tokenizer), "made once"
    ids = tokenizer.convert_tokens_to_ids(TOKENS["chatml"][0])
    marks = [Segment(mark, True, False) for mark in TOKENS["chatml"][0]]
    assert copied.encode(marks).ids == ids
