"""How the library's objects were made: a recipe that says it and a record of each step, so that
what is pushed has the card, lineage and licence of what a recipe makes."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hubkit import publishing
from hubkit.hub import Ref, connect, gate
from hubkit.hub.places import home
from hubkit.hub.versions import tag_version
from hubkit.pipeline.stage import PROVENANCE, record_of
from hubkit.publishing.lineage import StageRecord
from hubkit.recipe import Recipe, digest

_NAME = "python"
_ANYTHING = {
    "name": _NAME,
    "names": {
        "system": "A run from Python",
        "asker": "Asker",
        "dialogues": "Dialogues",
        "chat": "Chat model",
    },
    "repos": {
        "corpus": "corpus",
        "asker": "asker",
        "dialogues": "dialogues",
        "chat": "chat",
        "results": "results",
    },
    "corpus": {"sources": [{"path": "none"}]},
    "asker": {"base": "base", "seat": "user"},
    "rollout": {"dialogues": 1, "asker": {"repo": "asker"}, "chat": {"repo": "chat"}},
    "chat": {"base": "base", "seat": "assistant"},
}
_LICENSE_KEYS = {
    "asker": "license_asker",
    "dialogues": "license_dialogues",
}


@dataclass(frozen=True)
class History:
    """What made something: `recipe` holds the blocks,
    `records` what each step read and reported."""

    recipe: Recipe = field(default_factory=lambda: _without_sources())
    records: Mapping[str, StageRecord] = field(default_factory=dict)

    def with_blocks(self, **blocks: Any) -> History:
        """The same with other blocks in its recipe."""
        return replace(self, recipe=self.recipe.model_copy(update=blocks))

    def after(
        self, stage: str, inputs: Mapping[str, Ref], report: Mapping[str, Any], seconds: float
    ) -> History:
        """The same with one more step."""
        record = record_of(stage, self.recipe, inputs, dict(report), seconds)
        return replace(self, records={**self.records, stage: record})


def library_folder(kind: str, facts: Any) -> Path:
    """Where unpushed work of `facts` is kept: the same call finds or resumes it."""
    return home() / "library" / f"{kind}-{digest(facts)[:16]}"


def file_ref(name: str, files: list[Path]) -> Ref:
    """What stands for files that no Hub has: their name and the sha256 of their contents."""
    content = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return Ref(name, "file", content.hexdigest())


def push(
    files: Mapping[str, Path],
    repo_id: str,
    kind: publishing.Kind,
    history: History,
    stages: tuple[str, ...],
    *,
    license: str,
    private: bool | None,
    allow: Iterable[str] = (),
) -> Ref:
    """Commit `files` with their card and records, and tag a dataset's version.

    Raises `PublishError` for a file that must not leave, and `HubError`."""
    hub = connect().allowing(allow)
    repo_id = hub.qualify(repo_id)
    repo_type = "model" if kind == "asker" else "dataset"
    recipe = _named(history.recipe, repo_id, kind, license)
    records = {stage: history.records[stage] for stage in stages if stage in history.records}
    paths = [*files, *(f"{PROVENANCE}/{stage}.json" for stage in records)]
    facts = publishing.from_records(kind, repo_id, recipe, records, files=paths)
    generated = {
        f"{PROVENANCE}/{stage}.json": json.dumps(record, indent=1, default=str).encode()
        for stage, record in records.items()
    } | {"README.md": publishing.render(facts).encode()}
    gate.check(
        f"{repo_type} {repo_id} was not pushed",
        {**files, **generated},
        [repo_id],
        allowed=hub.allowed,
        kinds=gate.GROUPS["secrets"] if hub.embedded else gate.ALLOWABLE,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, source in files.items():
            _link(source, folder / path)
        for path, content in generated.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        ref = hub.commit(
            repo_id,
            folder,
            f"{kind.capitalize()} from Python",
            repo_type=repo_type,
            replace=("data/*",),
            private=private,
        )
    if repo_type == "dataset":
        tag_version(hub, ref, "pushed from Python")
    return ref


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def _named(recipe: Recipe, repo_id: str, kind: str, license: str) -> Recipe:
    """`recipe` with the repo's own name for what it holds, and its licence."""
    name = repo_id.rpartition("/")[2]
    names = recipe.names.model_copy(update={kind: name} if kind != "corpus" else {"asker": name})
    update: dict[str, object] = {"names": names}
    if key := _LICENSE_KEYS.get(kind):
        update["publish"] = recipe.publish.model_copy(update={key: license})
    return recipe.model_copy(update=update)


def _without_sources() -> Recipe:
    """A recipe of which no source is known: what a person writes has at least one."""
    recipe = Recipe.model_validate(_ANYTHING)
    corpus = recipe.corpus.model_copy(update={"sources": []})
    return recipe.model_copy(update={"corpus": corpus})
