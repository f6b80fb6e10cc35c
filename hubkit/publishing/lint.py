"""The card linter: what stands between a card and the world.

Takes a card's text and its kind, gives a list of problems as sentences; an empty list lets it pass.
It checks what the Hub would index wrongly or silently ignore, what a reader would miss, and what
must never leave this machine."""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from hubkit.bounded_yaml import parse_yaml
from hubkit.publishing.card_data import MODELS, Kind

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n(.*)\Z", re.DOTALL)
_FENCE = re.compile(
    r"^(?P<fence>`{3,})(?P<language>\w*)\n(?P<code>.*?)^(?P=fence)$", re.DOTALL | re.MULTILINE
)
_IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)\s]+)\)")
_SIZE = re.compile(r"n<1K|\d+[KMB]?<n<\d+[KMBT]|n>1T")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual")
_SHA = re.compile(r"`[0-9a-f]{40}`")
_COMMIT_ROW = re.compile(
    r"^\|[^|]*\|[^|]*\]\(/[^|]*/tree/[^|]*\|(?P<commit>[^|]*)\|$", re.MULTILINE
)

RELATIONS = frozenset({"adapter", "finetune", "merge", "quantized"})
# Licence ids that the Hub knows; a typo shows there as no licence at all. `other` and `unknown` ask
# for words.
_LICENSE_IDS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc intel-
research lppl-1.3c ms-pl mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1
ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3
llama4 gemma fair-noncommercial-research-license unknown other
"""
LICENSES = frozenset(_LICENSE_IDS.split())
HEADINGS: dict[str, tuple[str, ...]] = {
    "corpus": (
        "Use it",
        "Data and lineage",
        "What was dropped, and why",
        "Limits",
        "Licence",
        "Paper",
    ),
    "asker": (
        "Use it",
        "Held-out result",
        "Data and lineage",
        "How it was trained",
        "Limits",
        "Licence",
        "Paper",
    ),
    "dialogues": (
        "Use it",
        "Beside real people",
        "Data and lineage",
        "How it was made",
        "What was dropped, and why",
        "Limits",
        "Licence",
        "Paper",
    ),
    "chat": (
        "Use it",
        "Held-out result",
        "Data and lineage",
        "How it was trained",
        "Limits",
        "Licence",
        "Paper",
    ),
    "preference": (
        "Use it",
        "In numbers",
        "Data and lineage",
        "How it was made",
        "What was dropped, and why",
        "Limits",
        "Licence",
        "Paper",
    ),
    "aligned": (
        "Use it",
        "Held-out result",
        "Data and lineage",
        "How it was trained",
        "Limits",
        "Licence",
        "Paper",
    ),
    "reinforced": (
        "Use it",
        "Reward, before and after",
        "Data and lineage",
        "How it was trained",
        "Limits",
        "Licence",
        "Paper",
    ),
    "results": ("Use it", "Data and lineage", "Limits", "Licence", "Paper"),
    "base": ("Use it", "Data and lineage", "Limits", "Licence"),
    "source": ("Use it", "Data and lineage", "Limits", "Licence"),
    "benchmark": ("Use it", "How it was written", "Limits", "Licence"),
}
_NEVER = (
    (re.compile(r"\{\{|\}\}(?!\})|\{%"), "an unfilled template mark"),
    (re.compile(r"\[More Information Needed\]|\bTODO\b|\bFIXME\b"), "a placeholder"),
    (re.compile(r"\| *(None|nan|NaN|null) *\|"), "an empty value (None, nan) in a table"),
    (
        re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9]{20,}|\bAKIA[0-9A-Z]{16}\b"),
        "something that looks like a token",
    ),
    (
        re.compile(r"(?<![\w/])/(home|root|tmp|work|Users|var)/[\w.-]+"),
        "a path of the machine that made it",
    ),
    (
        re.compile(r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)"),
        "an address that only this machine can reach",
    ),
    (
        re.compile(r"<script|<iframe|javascript:|\bon(error|load|click)=", re.IGNORECASE),
        "markup that runs",
    ),
)


def forbidden(text: str) -> list[str]:
    """What no card may hold, wherever it stands, and `text` does."""
    return [problem for pattern, problem in _NEVER if pattern.search(text)]


def lint(card_text: str, kind: Kind, files: Sequence[str] | None = None) -> list[str]:
    """Every problem of a card, as sentences; none means that it may be pushed.

    With `files`, the paths that its repo holds, what the card names must be among them.
    """
    match = _FRONT_MATTER.match(card_text)
    if not match:
        return ["the card does not start with YAML between two lines of ---"]
    try:
        data = parse_yaml(match[1])
    except yaml.YAMLError as error:
        return [f"the front matter is not YAML: {' '.join(str(error).split())}"]
    if not isinstance(data, dict):
        return ["the front matter is not a mapping of keys to values"]
    named = () if files is None else _files(data, match[2], kind, files)
    return [*_metadata(data, kind), *_body(match[2], kind, data), *named]


def _files(data: Mapping[str, Any], body: str, kind: Kind, files: Sequence[str]) -> Iterator[str]:
    """What the card names and its repo does not hold, or holds and the card does not say."""
    if kind in ("corpus", "dialogues") and not data.get("size_categories"):
        yield "size_categories is missing"
    claimed: set[str] = set()
    for config in data.get("configs") or ():
        for entry in config.get("data_files") or ():
            matches = fnmatch.filter(files, str(entry.get("path")))
            claimed.update(matches)
            if not matches:
                yield (
                    f"config {config.get('config_name')!r} names {entry.get('path')!r}, and "
                    f"the repo has no such file"
                )
    if kind in ("corpus", "dialogues"):
        for path in sorted({*fnmatch.filter(files, "data/*.parquet")} - claimed):
            yield f"{path} belongs to no config, so the Hub's viewer would not show it"
    for path in _IMAGE.findall(_FENCE.sub("", body)):
        if path not in files:
            yield f"the card shows {path!r}, and the repo has no such file"


def _metadata(data: Mapping[str, Any], kind: Kind) -> Iterator[str]:
    if "licence" in data:
        yield "the key is `license`, not `licence`: the Hub ignores the other spelling"
    if data.get("license") not in LICENSES:
        yield (
            f"license {data.get('license')!r} is not one that the Hub knows; use its id, or "
            f"`other` with license_name"
        )
    if data.get("license") == "other" and not data.get("license_name"):
        yield "license `other` needs license_name"
    languages = data.get("language")
    for language in languages if isinstance(languages, list) else [languages]:
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            yield f"language {language!r} is not a language code such as en"
    if not data.get("tags"):
        yield "tags are missing"
    yield from _model(data, kind) if kind in MODELS else _dataset(data, kind)


def _model(data: Mapping[str, Any], kind: Kind) -> Iterator[str]:
    for key in ("pipeline_tag", "library_name"):
        if not data.get(key):
            yield f"{key} is missing"
    if kind == "base":
        return
    for key in ("base_model", "datasets"):
        if not data.get(key):
            yield f"{key} is missing: the Hub draws the lineage from it"
    if data.get("base_model_relation") not in RELATIONS:
        yield (
            f"base_model_relation {data.get('base_model_relation')!r} is not one of "
            f"{', '.join(sorted(RELATIONS))}"
        )
    if "model-index" in data:
        try:
            model_index_to_eval_results(data["model-index"])
        except (KeyError, TypeError, ValueError) as error:
            yield f"model-index is not what the Hub reads ({error!r})"


def _dataset(data: Mapping[str, Any], kind: Kind) -> Iterator[str]:
    if not data.get("pretty_name"):
        yield "pretty_name is missing"
    size = data.get("size_categories")
    if size is not None and not _SIZE.fullmatch(str(size)):
        yield f"size_categories {size!r} is not one that the Hub knows, such as 1K<n<10K"
    if kind not in ("corpus", "dialogues", "preference"):
        return
    names = []
    for config in data.get("configs") or ():
        names.append(config.get("config_name"))
        if not all(
            isinstance(f, dict) and f.get("split") and f.get("path")
            for f in config.get("data_files") or [{}]
        ):
            yield (
                f"config {config.get('config_name')!r} does not name split and path of its files"
            )
    if "default" not in names:
        yield (
            "configs have no `default`, so load_dataset without a config would not know what "
            "to load"
        )


def _body(body: str, kind: Kind, data: Mapping[str, Any]) -> Iterator[str]:
    prose = _FENCE.sub("", body)
    if not re.search(r"^# \S", prose, re.MULTILINE):
        yield "the card has no title"
    headings = re.findall(r"^## (.+?) *$", prose, re.MULTILINE)
    yield from (
        f"the section '{name}' is missing" for name in HEADINGS[kind] if name not in headings
    )
    papers = re.findall(r"arxiv\.org/abs/([\w.]+)", prose.partition("\n## Paper")[2])
    yield from (
        f"no tag arxiv:{n} names the paper"
        for n in papers
        if f"arxiv:{n}" not in (data.get("tags") or ())
    )
    yield from (f"the card holds {problem}" for problem in forbidden(body))
    snippets = [m["code"] for m in _FENCE.finditer(body) if m["language"] == "python"]
    if not snippets:
        yield "no Python snippet says how to use it"
    for snippet in snippets:
        try:
            ast.parse(snippet)
        except SyntaxError as error:
            yield f"a snippet is not Python: {error.msg} in line {error.lineno}"
    if kind not in ("base", "source", "benchmark"):
        yield from _lineage(body, kind)


def _lineage(body: str, kind: Kind) -> Iterator[str]:
    commits = [m["commit"].strip() for m in _COMMIT_ROW.finditer(body)]
    if not commits and kind != "corpus":  # a corpus may be made of local files
        yield "the lineage names no input repo"
    yield from (
        f"the lineage names {c or 'nothing'} where a full commit is needed"
        for c in commits
        if not _SHA.fullmatch(c)
    )
