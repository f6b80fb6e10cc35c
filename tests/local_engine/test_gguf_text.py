"""What llama.cpp's own server is given reads text as the model's tokenizer does, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_models import tiny_base

from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.local_engine.gguf_model import convert_model
from hubkit.local_engine.gguf_text import with_tokenizer
from hubkit.local_engine.llamacpp import count_tokens

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["<|im_start|>user\nHello there<|im_end|>\n", "naïve café 🙂 1234", "and  the\n\nother"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_base(tmp_path_factory.mktemp("model") / "base")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return folder


@pytest.fixture(scope="module")
def by_ids(base: Path) -> Path:
    """As the embedded engine has it, which gives llama.cpp token ids."""
    out = base.parent / "ids.gguf"
    convert_model(base, out, dtype="f32")
    return out


def test_text_is_split_as_the_models_tokenizer_splits_it(base: Path, by_ids: Path) -> None:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

    out = base.parent / "text.gguf"
    with_tokenizer(by_ids, base, out)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    expected = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS]
    assert count_tokens(out, TEXTS) == expected
    assert count_tokens(by_ids, TEXTS) != expected, "that file is none for text"
    fields = GGUFReader(out).fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    tensors = [
        {t.name: t.data.tobytes() for t in GGUFReader(file).tensors} for file in (by_ids, out)
    ]
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize(
    ("pre_tokenizer", "says"),
    [
        ({"type": "Metaspace", "replacement": "▁"}, "no way to split text"),
        ({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Isolated"},
            {"type": "ByteLevel", "use_regex": False}]}, "no way to split text"),
        ({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
             "use_regex": True}]}, "in other tokens"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(
    base: Path, by_ids: Path, tmp_path: Path, pre_tokenizer: dict, says: str
) -> None:
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spec = json.loads((base / "tokenizer.json").read_text("utf-8"))
    spec["pre_tokenizer"] = pre_tokenizer
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    with pytest.raises(UnsupportedModelError, match=rf"{says}.*serve it with vllm"):
        with_tokenizer(by_ids, tmp_path, tmp_path / "out.gguf")
