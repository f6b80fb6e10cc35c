"""One repository: its card, rows of its data, its discussions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml
from starlette.responses import Response

from hubkit.local_hub.api.discussions import diff, discussion_row, merge_base, pr_ref
from hubkit.local_hub.api.http import Call, require_gate
from hubkit.local_hub.api.resolve import find_file
from hubkit.local_hub.errors import Refusal
from hubkit.local_hub.pages import space
from hubkit.local_hub.pages.preview import ROWS, kind_of, preview
from hubkit.local_hub.pages.render import diff_lines, markdown, page
from hubkit.local_hub.storage import cards, trees
from hubkit.local_hub.storage.git import DEFAULT_BRANCH
from hubkit.local_hub.storage.repos import Repo, commit_of, git
from hubkit.untrusted import JsonObject, list_in, object_in, text_in

SNIPPETS = {
    "model": (
        "from transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("{id}")'
    ),
    "dataset": 'from datasets import load_dataset\n\ndataset = load_dataset("{id}")',
    "space": (
        "from huggingface_hub import snapshot_download\n\n"
        'folder = snapshot_download("{id}", repo_type="space")'
    ),
}


EMPTY: JsonObject = {"total": None, "rows": []}


def repo_page(call: Call, repo: Repo, tab: str, template: str, **values: Any) -> Response:
    """A page about a repository, with its tabs."""
    tabs = [
        ("Card", ""),
        ("Files", f"/tree/{DEFAULT_BRANCH}"),
        ("Commits", f"/commits/{DEFAULT_BRANCH}"),
    ]
    tabs += [("Rows", "/rows")] if repo.type == "dataset" else []
    tabs.append(("Discussions", "/discussions"))
    return page(call, template, repo=repo, tabs=tabs, tab=tab, active=f"{repo.type}s", **values)


def card(call: Call, repo: Repo, tail: list[str]) -> Response:
    """The README, rendered."""
    problem, metadata, tags, body = None, {}, [], None
    with git(call.hub, repo) as opened:
        tree = opened.commit(commit_of(opened, DEFAULT_BRANCH)).tree
        paths = [entry.path for entry in trees.files(opened, tree)]
        readme = trees.find(opened, tree, "README.md")
        text = (
            opened.blob(readme.sha).decode("utf-8", "replace")
            if readme and readme.is_file
            else None
        )
    if text is not None:
        try:
            metadata = cards.metadata(text)
        except cards.CardError as error:
            problem = str(error)
        base = repo.web_path
        body = markdown(
            cards.split(text)[1],
            f"{base}/blob/{DEFAULT_BRANCH}/",
            f"{base}/resolve/{DEFAULT_BRANCH}/",
        )
    tags = cards.tags_of(repo.type, metadata, paths)
    return repo_page(
        call,
        repo,
        "Card",
        "card.html",
        card=body,
        tags=tags,
        problem=problem,
        metadata=yaml.safe_dump(metadata, allow_unicode=True, sort_keys=False) if metadata else "",
        snippet=SNIPPETS.get(repo.type, SNIPPETS["model"]).replace("{id}", repo.id),
        folder=str(call.hub.repo_path(repo.folder)),
        **space.app_details(call, repo),
    )


def rows(call: Call, repo: Repo, tail: list[str]) -> Response:
    """Rows of a data file: of any, or of a config's split (``/viewer/CONFIG/SPLIT``)."""
    require_gate(call, repo)
    with git(call.hub, repo) as opened:
        tree = opened.commit(commit_of(opened, DEFAULT_BRANCH)).tree
        files = [entry.path for entry in trees.files(opened, tree) if kind_of(entry.path)]
        readme = trees.find(opened, tree, "README.md")
        text = opened.blob(readme.sha).decode("utf-8", "replace") if readme else ""
    files.sort(key=lambda path: ("train" not in path, path))
    splits = _splits(cards.safe_metadata(text), files)
    chosen = (tail[0], tail[1] if len(tail) > 1 else None) if tail else None
    if splits and not tail and not call.query("file"):  # as `load_dataset` reads it
        chosen = next((name for name in splits if name[0] == "default"), next(iter(splits)))
    if chosen and splits:
        names = [name for name in splits if name[0] == chosen[0] and chosen[1] in (None, name[1])]
        if not names:
            raise Refusal(404, f"There is no config and split {'/'.join(tail)[:200]!r} here.")
        chosen = names[0]
        files = splits[chosen]
    action = (
        f"{repo.web_path}/viewer/{'/'.join(map(quote, chosen))}"
        if chosen in splits
        else (f"{repo.web_path}/rows")
    )
    file = call.query("file") or (files[0] if files else "")
    if file and file not in files:
        raise Refusal(404, f"There is no data file {file[:200]!r} on the main branch.")
    text = call.query("start") or "0"
    start = int(text) if text.isdecimal() and len(text) < 12 else 0
    problem, table = None, EMPTY
    if file:
        try:
            table = _preview(call, repo, file, start)
        except Refusal as refusal:
            problem = refusal.message
    total, window = table["total"], list_in(table, "rows")
    has_next = len(window) == ROWS and (not isinstance(total, int) or start + ROWS < total)
    return repo_page(
        call,
        repo,
        "Rows",
        "rows.html",
        files=files[:2000],
        file=file,
        start=start,
        total=total,
        problem=problem,
        rows=[_row(row) for row in window if isinstance(row, list)],
        next=_rows_link(action, file, start + ROWS) if has_next else None,
        previous=_rows_link(action, file, max(0, start - ROWS)),
        action=action,
        parts=[
            {
                "config": name[0],
                "split": name[1],
                "href": f"{repo.web_path}/viewer/{'/'.join(map(quote, name))}",
                "current": name == chosen,
            }
            for name in splits
        ],
    )


def _splits(metadata: JsonObject, files: list[str]) -> dict[tuple[str, str], list[str]]:
    """The files of each (config, split) that a card's metadata names; those without any are left
    out.
    """
    splits: dict[tuple[str, str], list[str]] = {}
    configs = metadata.get("configs")
    for config in configs[:100] if isinstance(configs, list) else ():
        data_files = config.get("data_files") if isinstance(config, dict) else None
        for entry in data_files[:100] if isinstance(data_files, list) else ():
            pattern = entry.get("path") if isinstance(entry, dict) else None
            patterns = [p for p in (pattern if isinstance(pattern, list) else [pattern]) if p]
            matches = [file for file in files if any(fnmatch(file, str(p)) for p in patterns)]
            if matches:
                name = (str(config.get("config_name", "default")), str(entry.get("split", "train")))
                splits[name] = sorted(matches)
    return splits


def _rows_link(action: str, file: str, start: int) -> str:
    return f"{action}?{urlencode({'file': file, 'start': start})}"


def _row(row: list[Any]) -> JsonObject:
    """A row's cells, and what a person sees of it while it is folded."""
    cells = [_cell(name, value) for name, value in row]
    turns = sum(len(list_in(cell, "turns")) for cell in cells)
    note = f"{len(cells)} columns" + (f", {turns} turns" if turns else "")
    return {"cells": cells, "note": note}


def _cell(name: str, value: JsonObject) -> JsonObject:
    turns = [
        {"role": turn[0], "content": turn[1]}
        for turn in list_in(value, "turns")
        if isinstance(turn, list)
    ]
    return {"name": name, "turns": turns, "text": value.get("text", "")}


def _preview(call: Call, repo: Repo, file: str, start: int) -> JsonObject:
    repo_file = find_file(call, repo, DEFAULT_BRANCH, file)
    kind = kind_of(file)
    assert kind is not None  # only such files are offered
    if repo_file.pointer:
        if call.hub.objects.size(repo_file.pointer.oid) is None:
            raise Refusal(404, f"{file} is not on this Hub's disk: not downloaded, or damaged.")
        return preview(call.hub.objects.path(repo_file.pointer.oid), kind, start)
    with _as_file(repo_file.data or b"", call.hub.objects.temporary) as path:
        return preview(path, kind, start)


@contextmanager
def _as_file(data: bytes, folder: Path) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


# discussions


def discussions(call: Call, repo: Repo, tail: list[str]) -> Response:
    """The list, or one of them."""
    if tail:
        return _discussion(call, repo, tail[0])
    discussion_rows = call.hub.settings.rows(
        "SELECT * FROM discussions WHERE repo = ? ORDER BY num DESC LIMIT 500", repo.pk
    )
    return repo_page(call, repo, "Discussions", "discussions.html", discussions=discussion_rows)


def _discussion(call: Call, repo: Repo, number: str) -> Response:
    row = discussion_row(call, repo, number)
    if row["is_pull"]:
        require_gate(call, repo)
    events = call.hub.settings.rows(
        "SELECT * FROM events WHERE repo=? AND num=? ORDER BY pk", repo.pk, row["num"]
    )
    lines: list[tuple[str, str]] = []
    if row["is_pull"]:
        with git(call.hub, repo) as opened:
            head, target = opened.ref(pr_ref(row["num"])), opened.ref(row["target"].encode())
            base = merge_base(opened, target, head) if head and target else None
            if head and base:
                lines, _ = diff_lines(
                    diff(opened, opened.commit(base).tree, opened.commit(head).tree)
                )
    timeline = [
        _event(event["type"], event["author"], event["created_at"], json.loads(event["data"]))
        for event in events
    ]
    return repo_page(
        call, repo, "Discussions", "discussion.html", item=row, events=timeline, lines=lines
    )


def _event(kind: str, author: str, at: str, data: JsonObject) -> JsonObject:
    sentences = {
        "comment": "wrote" if not data.get("hidden") else "(hidden)",
        "status-change": f"set the status to {data.get('status')}",
        "title-change": f"changed the title to {data.get('to')}",
        "commit": f"committed {str(data.get('oid'))[:12]}: {data.get('subject')}",
    }
    body = markdown(text_in(object_in(data, "latest"), "raw")) if kind == "comment" else None
    return {"author": author, "at": at, "what": sentences.get(kind, kind), "card": body}
