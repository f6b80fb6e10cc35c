"""A GGUF file as a model folder that this engine serves.

llama.cpp withholds a token whose text is no whole character, so the file is written again with this
package's vocabulary (`gguf_vocab`); tensors are copied as they are. Its tokenizer becomes a
tokenizer.json by transformers' reader, which knows how each kind of file splits text. What no field
of the file says for certain is proven: llama.cpp counts the tokens of some texts by the original
file, and every count has to be the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubkit.errors import EngineError
from hubkit.local_engine.gguf_vocab import write_vocab

_PROBES = (
    "Hello world",
    "  two spaces, a\ttab\n\nand two lines\n",
    "1234567890 3.14 2026-11-28",
    "don't we'll I'M they'Re",
    "naïve café — “quotes” …",
    "日本語のテキスト 한국어 العربية",
    "def f(x):\n    return x**2  # squared",
    "🙂👩‍👩‍👧 ñandú",
    "UPPER lower MiXeD snake_case camelCase",
    "https://example.org/a?b=c&d=%20",
)


def serve_folder(source: Path, out: Path) -> None:
    """Write `out`, the GGUF file `source` with this package's vocabulary, and next to it what a
    model repo has: tokenizer files, chat template, config.json.

    Raises:
        EngineError: The file is damaged, or its tokenizer cannot be reproduced exactly.
    """
    from gguf import GGUFReader

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        reader = GGUFReader(source)
        fields = dict(reader.fields)
        architecture = str(fields["general.architecture"].contents())
        tokens = fields["tokenizer.ggml.tokens"]
        end = int(fields["tokenizer.ggml.eos_token_id"].contents())
        context = int(fields[f"{architecture}.context_length"].contents())
    except (OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise EngineError(
            f"{source} is not a whole GGUF file of a language model ({error!r}); download it again"
        ) from error
    folder = out.parent
    config = {"architectures": [architecture], "eos_token_id": _ends(fields, end)}
    config |= {"max_position_embeddings": context}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = _tokenizer(source, folder)
    if template := fields.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(str(template.contents()), "utf-8")
    _check(source, tokenizer)
    rows, ends = len(tokens.data), _ends(fields, end)
    copy_gguf(reader, out, lambda w: write_vocab(w, folder, rows=rows, eos_token_ids=ends))


def _ends(fields: dict[str, Any], end: int) -> list[int]:
    """The ids that end a generation: end of sequence, of turn, of message."""
    names = ("eot", "eom")
    turn_ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in names]
    return [end, *(int(field.contents()) for field in turn_ends if field is not None)]


def _tokenizer(source: Path, folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(source.parent), gguf_file=source.name, trust_remote_code=False
        )
        tokenizer.save_pretrained(folder)
    except Exception as error:  # whatever a file makes the library raise
        raise EngineError(
            f"{source}: its tokenizer cannot be read ({type(error).__name__}: "
            f"{str(error)[:200]}); serve the model's repo with safetensors"
        ) from error
    return tokenizer


def differing_text(source: Path, count: Callable[[str], int], *further_texts: str) -> str | None:
    """The first text, of some telling ones and `further_texts`, that llama.cpp splits by the
    tokenizer in `source` into another number of tokens than `count` says; None where all are the
    same.
    """
    from hubkit.local_engine.llamacpp import count_tokens

    texts = ["a", *_PROBES, *filter(None, further_texts)]
    counts = count_tokens(source, texts)
    added = counts[0] - count("a")  # BOS
    for text, token_count in zip(texts, counts, strict=True):
        if token_count - added != count(text):
            return text
    return None


def _check(source: Path, tokenizer: Any) -> None:
    """Compare token counts with llama.cpp's own. Raises `EngineError` where one differs."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    if (text := differing_text(source, count)) is not None:
        raise EngineError(
            f"{source}: its tokenizer cannot be reproduced ({text!r} has another number of tokens "
            "in llama.cpp than here); serve the model's repo with safetensors"
        )


def copy_gguf(reader: Any, out: Path, write_tokenizer: Callable[[Any], None]) -> None:
    """Copy a GGUF file but for its tokenizer, which `write_tokenizer` adds to the writer."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(str(out), str(reader.fields["general.architecture"].contents()))
    try:
        for name, field in reader.fields.items():
            if name.startswith(("GGUF.", "tokenizer.")) or name == "general.architecture":
                continue
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, inner)
        write_tokenizer(writer)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
