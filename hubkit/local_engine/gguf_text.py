"""A converted model with its real tokenizer, for llama.cpp's own server, which is sent text.

The embedded engine gives llama.cpp token ids, so its files hold stand-ins (`gguf_vocab`). A server
of llama.cpp reads and writes text by the tokenizer in the file: the file is written again with the
vocabulary, merges and chat template of the model, and it is proven that llama.cpp then splits texts
as the model's tokenizer does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.local_engine.gguf_file import copy_gguf, differing_text
from hubkit.local_engine.gguf_vocab import read_tokenizer_json
from hubkit.untrusted import parse_json

_INSTEAD = "serve it with vllm, sglang, transformers or the embedded engine"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {f"{_WORDS}\\p{{N}}{_REST}": "qwen2", f"{_WORDS}\\p{{N}}{{1,3}}{_REST}": "llama-bpe"}


def with_tokenizer(source: Path, folder: Path, out: Path) -> None:
    """Write `out`: the converted model `source` with the tokenizer and the template of `folder`.

    Raises:
        UnsupportedModelError: llama.cpp would split text in another way than the model's tokenizer.
    """
    from gguf import GGUFReader

    spec: dict[str, Any] = dict(read_tokenizer_json(folder))
    reader = GGUFReader(source)
    rows = len(reader.fields["tokenizer.ggml.tokens"].data)
    end = int(reader.fields["tokenizer.ggml.eos_token_id"].contents())
    pre = _pre_tokenizer(spec, folder)
    copy_gguf(reader, out, lambda writer: _write(writer, spec, folder, pre, rows=rows, end=end))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    controls = "".join(t["content"] for t in spec.get("added_tokens", [])[:3])
    if text := differing_text(
        out, lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), controls
    ):
        raise UnsupportedModelError(
            f"llama.cpp reads {text!r} in other tokens than the tokenizer of {folder}; {_INSTEAD}"
        )


def _pre_tokenizer(spec: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name for how the tokenizer splits text into words."""
    model, pre_tokenizer = spec["model"], spec.get("pre_tokenizer") or {}
    is_byte_level = model.get("type") == "BPE" and "ByteLevel" in str(spec.get("decoder"))
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") for step in steps]
    if is_byte_level and kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if is_byte_level and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if is_byte_level and kinds == ["Split", "ByteLevel"]:
        pattern = (steps[0].get("pattern") or {}).get("Regex", "")
        if pattern in _SPLITS:
            return _SPLITS[pattern]
    raise UnsupportedModelError(
        f"llama.cpp's own server has no way to split text that is known to be that of {folder} "
        f"({model.get('type')}, {', '.join(map(str, kinds))}); {_INSTEAD}"
    )


def _write(
    writer: Any, spec: dict[str, Any], folder: Path, pre: str, *, rows: int, end: int
) -> None:
    from gguf import TokenType

    texts = {int(i): token for token, i in spec["model"]["vocab"].items()}
    added = {int(token["id"]): token for token in spec.get("added_tokens", [])}
    tokens, kinds = [], []
    for i in range(rows):
        if i in added:
            tokens.append(added[i]["content"])
            is_special = bool(added[i].get("special"))
            kinds.append(TokenType.CONTROL if is_special else TokenType.USER_DEFINED)
        else:
            tokens.append(texts.get(i, f"[PAD{i}]"))
            kinds.append(TokenType.NORMAL if i in texts else TokenType.UNUSED)
    pairs = spec["model"].get("merges") or ["a b"]  # which llama.cpp must be given
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    if template := _template(folder):
        writer.add_chat_template(template)


def _template(folder: Path) -> str:
    """The model's chat template; empty where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    try:
        config = parse_json((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    template = config.get("chat_template") if isinstance(config, dict) else None
    return template if isinstance(template, str) else ""
