"""Where a repo comes from: a tree of commits, read out of the provenance that each commit carries.

Takes a `Hub` and a commit; gives a `Node` with the nodes that it was made from, its text and its
picture."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, cast

from hubkit.errors import RepoMissingError
from hubkit.hub import Hub, Ref
from hubkit.untrusted import JsonObject, parse_json

PROVENANCE = "provenance"
PICTURE = "lineage.png"
DECLARED = "declared"
"""The type of a model that is no repo: its recipe declares its name, and its licence in place of a
commit."""
_NO_REPOS = ("file", DECLARED)
_COLOURS = {
    "model": "#ffe9b8",
    "dataset": "#d5e8ff",
    "space": "#e3d9ff",
    "file": "#eceff3",
    DECLARED: "#eceff3",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A repo at a commit, the role in which it was read, and what it was made from.

    `is_repeated`: drawn in full elsewhere.
    """

    ref: Ref
    role: str = ""
    made_from: list[Node] = field(default_factory=list)
    is_repeated: bool = False

    def to_dict(self) -> JsonObject:
        """Plain data, for ``--json``."""
        return {
            "role": self.role,
            **self.ref.to_dict(),
            "made_from": [node.to_dict() for node in self.made_from],
        }


class StageRecord(TypedDict, total=False):
    """What a commit says of the stage that made it. Earlier versions said less."""

    stage: str
    stage_key: str
    recipe: JsonObject
    digest: str
    block: JsonObject
    plugins: Any
    inputs: dict[str, dict[str, str]]
    seed: int
    hubkit: str
    packages: dict[str, str]
    made_at: str
    seconds: float
    report: JsonObject
    supersedes: Any


def records(hub: Hub, ref: Ref) -> dict[str, StageRecord]:
    """The provenance records that a commit holds, by stage; none for a repo that no stage made.

    A record that is not JSON of a record's shape is left out: another tool's file of that name is
    not ours."""
    records_by_stage: dict[str, StageRecord] = {}
    for path in _record_paths(hub, ref) if is_repo(ref) else ():
        try:
            record = parse_json(hub.read(ref, path))
        except ValueError:
            continue
        if (
            isinstance(record, dict)
            and isinstance(record.get("inputs"), dict)
            and isinstance(record.get("stage"), str)
        ):
            records_by_stage[record["stage"]] = cast("StageRecord", record)
    return records_by_stage


def _record_paths(hub: Hub, ref: Ref) -> list[str]:
    """Paths of the records in a commit, sorted. None when the commit has none or is not on this
    Hub.
    """
    try:
        with hub.translated(f"listing the records of {ref}"):
            tree = hub.api.list_repo_tree(
                ref.repo_id, PROVENANCE, revision=ref.revision, repo_type=ref.repo_type
            )
            return sorted(entry.path for entry in tree if entry.path.endswith(".json"))
    except RepoMissingError:
        return []


def trace(ref: Ref, read: Callable[[Ref], Mapping[str, Mapping[str, Any]]]) -> Node:
    """The tree behind `ref`; `read` gives a commit's records. What several repos were made from is
    expanded once.
    """
    return _trace(ref, "", read, set())


def _trace(
    ref: Ref, role: str, read: Callable[[Ref], Mapping[str, Mapping[str, Any]]], visited: set[Ref]
) -> Node:
    if ref in visited:
        return Node(ref, role, is_repeated=True)
    visited.add(ref)
    sources = inputs(read(ref), ref.repo_id)
    return Node(
        ref,
        role,
        [_trace(source, ", ".join(roles), read, visited) for source, roles in sources.items()],
    )


def inputs(
    records_by_stage: Mapping[str, Mapping[str, Any]], repo_id: str
) -> dict[Ref, tuple[str, ...]]:
    """What the stages that led to a commit of `repo_id` read, and in which roles.

    Its own repo's earlier commits are left out: their records are in it. A model whose tokenizer
    also counted somewhere is named by what else it was.
    """
    roles: dict[Ref, dict[str, None]] = {}
    for record in records_by_stage.values():
        for role, source in record.get("inputs", {}).items():
            ref = Ref(str(source["repo_id"]), str(source["repo_type"]), str(source["revision"]))
            if ref.repo_id != repo_id:
                roles.setdefault(ref, {})[role] = None
        for role, ref in _declared(record):
            roles.setdefault(ref, {})[role] = None
    return {
        ref: tuple(role for role in named if role != "tokenizer") or tuple(named)
        for ref, named in roles.items()
    }


def _declared(record: Mapping[str, Any]) -> Iterator[tuple[str, Ref]]:
    """The models without a repo that sat in a stage's seats, by role."""
    block = record.get("block")
    if not isinstance(block, Mapping):
        return
    for role in ("asker", "chat"):
        seat = block.get(role)
        if isinstance(seat, Mapping) and seat.get("name") and seat.get("repo", "") is None:
            yield role, Ref(str(seat["name"]), DECLARED, f"licence: {seat.get('license')}")


def is_repo(ref: Ref) -> bool:
    """Whether `ref` is a commit of a repo, not a file of the user's or a declared model."""
    return ref.repo_type not in _NO_REPOS


def relabelled(node: Node, name: Callable[[Ref], Ref]) -> Node:
    """The same tree with every commit renamed by `name`, as when it is shown on another Hub."""
    return replace(
        node, ref=name(node.ref), made_from=[relabelled(child, name) for child in node.made_from]
    )


def text(node: Node) -> str:
    """The tree as lines of text, root first."""
    return "\n".join(_lines(node, "", ""))


def _lines(node: Node, lead: str, below: str) -> Iterator[str]:
    role = f"{node.role}: " if node.role else ""
    suffix = " (above)" if node.is_repeated and node.role else ""
    if node.ref.repo_type == DECLARED:
        yield f"{lead}{role}{node.ref.repo_id} (declared; {node.ref.revision}){suffix}"
        return
    yield (f"{lead}{role}{node.ref.repo_type} {node.ref.repo_id} @ {node.ref.revision[:8]}{suffix}")
    for number, child in enumerate(node.made_from, start=1):
        last = number == len(node.made_from)
        yield from _lines(
            child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")
        )


_LINE = "#98a2b3"
Slot = Ref | tuple[Ref, int]
"""A commit's place in the picture, or where the arrows from a commit pass through a column."""


def picture(node: Node) -> bytes:
    """The tree as a PNG: each commit once, an arrow from what was read to what was made. Same tree,
    same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, paths = _layout(node)
    height = max(len(column) for column in columns) + 1
    figure = Figure(figsize=(2.3 * len(columns), 0.8 * height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, height - 0.5)
    places: dict[Slot, tuple[float, float]] = {}
    for x, column in enumerate(columns):
        for y, slot in enumerate(column):
            places[slot] = (float(x), (height - len(column)) / 2 + y)
            if isinstance(slot, Ref):
                _box(axes, places[slot], slot)
    for path in paths:
        for step, (start, end) in enumerate(itertools.pairwise(path), start=1):
            (x0, y0), (x1, y1) = places[start], places[end]
            head = "->" if step == len(path) - 1 else "-"
            style = {"arrowstyle": head, "color": _LINE, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x1 - 0.43, y1), (x0 + 0.43, y0), arrowprops=style, zorder=0)
            if not isinstance(end, Ref):
                axes.plot((x1 - 0.43, x1 + 0.43), (y1, y1), color=_LINE, lw=1, zorder=0)
    made_of = io.BytesIO()
    figure.savefig(made_of, format="png", dpi=130, metadata={"Software": None})
    return made_of.getvalue()


def _layout(root: Node) -> tuple[list[list[Slot]], list[list[Slot]]]:
    """Columns of commits, sources at the left, and the arrows between them, each as the slots that
    it goes through.

    An arrow over several columns has a slot of its own in those between, so that it passes behind
    a box."""
    depth: dict[Ref, int] = {}
    edges: list[tuple[Ref, Ref]] = []

    def walk(node: Node) -> None:
        for child in node.made_from:
            edges.append((child.ref, node.ref))
            walk(child)

    walk(root)
    depth[root.ref] = 0
    for _ in edges:  # longest path: as many rounds as there are arrows are enough
        for source, target in edges:
            if target in depth:
                depth[source] = max(depth.get(source, 0), min(depth[target] + 1, len(edges)))
    deepest = max(depth.values())
    columns: list[list[Slot]] = [[] for _ in range(deepest + 1)]
    for ref, steps in depth.items():
        columns[deepest - steps].append(ref)
    paths: list[list[Slot]] = []
    for source, target in dict.fromkeys(edges):
        between: list[Slot] = [
            (source, x) for x in range(deepest - depth[source] + 1, deepest - depth[target])
        ]
        for slot, column in zip(between, columns[deepest - depth[source] + 1 :], strict=False):
            if slot not in column:
                column.append(slot)
        paths.append([source, *between, target])
    return columns, paths


def _box(axes: Any, at: tuple[float, float], ref: Ref) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = at
    style = "round,pad=0,rounding_size=0.04"
    axes.add_patch(
        FancyBboxPatch(
            (x - 0.43, y - 0.38),
            0.86,
            0.76,
            style,
            fc=_COLOURS[ref.repo_type],
            ec="#667085",
            lw=0.8,
        )
    )
    namespace, _, name = ref.repo_id.rpartition("/")
    has_commit = ref.revision and ref.repo_type != DECLARED
    commit = f"{ref.repo_type} @ {ref.revision[:8]}" if has_commit else ref.repo_type
    for dy, line, size in ((0.22, namespace, 6.5), (0.0, name, 8), (-0.22, commit, 6.5)):
        axes.text(
            x, y + dy, _fitting(line), ha="center", va="center", fontsize=size, parse_math=False
        )


def _fitting(line: str) -> str:
    return line if len(line) <= 26 else f"{line[:15]}…{line[-10:]}"
