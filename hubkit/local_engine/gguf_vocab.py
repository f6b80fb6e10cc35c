"""A tokenizer's vocabulary as llama.cpp wants it.

The service tokenizes and detokenizes with the repo's own `tokenizer.json`, so llama.cpp only sees
token ids. It still needs a text per id: grammars read it, and its stream *withholds* a token whose
text does not end on a whole UTF-8 character, id included. So every id gets a text that is whole by
itself: its real text where that is valid UTF-8 and unique, a stand-in otherwise. Control tokens get
stand-ins too: llama.cpp guesses end-of-sequence tokens by their text, and the only ones that count
here are those the model names."""

from __future__ import annotations

import re
from pathlib import Path

from gguf import GGUFWriter, TokenType

from hubkit.errors import EngineError
from hubkit.local_engine.engine import UnsupportedModelError
from hubkit.untrusted import JsonObject, count_in, list_in, object_in, objects_in, parse_json


def write_vocab(writer: GGUFWriter, folder: Path, *, rows: int, eos_token_ids: list[int]) -> None:
    """Add the vocabulary of `folder`/tokenizer.json to `writer`, padded to the embedding's `rows`.

    Raises `EngineError` for a tokenizer that is neither byte-level BPE nor SentencePiece-style with
    byte fallback."""
    spec = read_tokenizer_json(folder)
    texts = _texts(spec)
    added = {
        count_in(token, "id"): bool(token.get("special"))
        for token in objects_in(spec, "added_tokens")
    }
    highest = max([*texts, *added], default=-1)
    if highest >= rows:
        raise UnsupportedModelError(
            f"{folder}: the tokenizer has token id {highest} but the embedding only {rows} rows; "
            "resize the embedding and save the model again"
        )
    tokens, kinds, known_tokens = [], [], set()
    for i in range(rows):
        text = texts.get(i)
        control = added.get(i, False) or text is None or i in eos_token_ids
        if control or text in known_tokens:
            text = f"<|{i}|>"
        assert text is not None
        known_tokens.add(text)
        tokens.append(_byte_level(text.encode()))
        kinds.append(
            TokenType.CONTROL
            if control
            else TokenType.USER_DEFINED
            if i in added
            else TokenType.NORMAL
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])  # never used: prompts arrive as ids
    writer.add_add_bos_token(False)
    writer.add_bos_token_id(eos_token_ids[0])
    writer.add_eos_token_id(eos_token_ids[0])


def read_tokenizer_json(folder: Path) -> JsonObject:
    """`folder`/tokenizer.json, parsed. Raises `EngineError` when it is missing or not JSON."""
    path = folder / "tokenizer.json"
    try:
        spec = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineError(
            f"{folder} has no tokenizer.json; push the tokenizer with the model"
        ) from error
    except ValueError as error:
        raise EngineError(f"{path} is not JSON ({error}); push the tokenizer again") from error
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise EngineError(f"{path} is not a tokenizer; push the tokenizer again")
    return spec


def _texts(spec: JsonObject) -> dict[int, str]:
    """Token id → its own text, for the ids whose bytes are whole UTF-8."""
    model = object_in(spec, "model")
    kind, decoders = model.get("type"), str(spec.get("decoder"))
    if kind == "Unigram" and list_in(model, "vocab"):
        pieces = (entry for entry in list_in(model, "vocab") if isinstance(entry, list))
        vocab = {str(entry[0]): i for i, entry in enumerate(pieces)}
    elif kind == "BPE" and isinstance(model.get("vocab"), dict):
        vocab = {token: i for token, i in object_in(model, "vocab").items() if isinstance(i, int)}
    else:
        raise UnsupportedModelError(f"a {kind} tokenizer needs the transformers engine")
    if "ByteLevel" in decoders:
        alphabet = {char: byte for byte, char in enumerate(_BYTE_CHARS)}
        raw = {i: _from_byte_level(token, alphabet) for token, i in vocab.items()}
    elif "ByteFallback" in decoders or "Metaspace" in decoders:
        raw = {i: _from_sentencepiece(token) for token, i in vocab.items()}
    else:
        raise UnsupportedModelError(
            "this tokenizer is neither byte-level nor SentencePiece-style; "
            "use the transformers engine"
        )
    texts = {}
    for i, piece in raw.items():
        try:
            texts[i] = piece.decode()
        except UnicodeDecodeError:
            continue  # part of a character: gets a stand-in
    return texts


def _from_byte_level(token: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes(alphabet[char] for char in token)
    except KeyError:
        return token.encode()  # an added token, stored as plain text


def _from_sentencepiece(token: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _byte_chars() -> list[str]:
    """GPT-2's printable stand-in for each byte: printable bytes are themselves, the rest are
    shifted past U+0100.
    """
    printable_bytes = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    chars, shifted = [], 0
    for byte in range(256):
        chars.append(chr(byte) if byte in printable_bytes else chr(256 + shifted))
        shifted += byte not in printable_bytes
    return chars


_BYTE_CHARS = _byte_chars()


def _byte_level(text: bytes) -> str:
    return "".join(_BYTE_CHARS[byte] for byte in text)
