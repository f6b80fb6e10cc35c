"""Which conversations are trained on, which open dialogues, which are held out: by hash, so that
runs agree.

Rows of one original conversation share a group, and so do one person's conversations, where the
source says whose they are, and conversations that begin with the same words (a pasted prompt
travels); a group goes to one split as a whole. Groups are ranked by a hash
of the seed and the group, so that another run, another order of files or a few more rows move as
few conversations as can be."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from hashlib import blake2b

from hubkit.conversation import Conversation
from hubkit.errors import StageError

SPLITS = ("train", "openings", "test")
TRAIN, OPENINGS, TEST = range(3)
_SPACE = re.compile(r"\s+")
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")  # digits may read as a card's
_SHARED_OPENING_CHARS = 40  # shorter first turns ("hi", "continue") are shared by strangers


class Splitter:
    """Hears of every kept row in order (`add`), then says for each where it goes (`assign`). ~40
    bytes a row.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._groups = array("Q")  # per row
        self._starts = array("b")
        self._parent: dict[int, int] = {}
        self._repeated: dict[int, str] = {}  # group: its name, where more than one row has it
        self._people: set[int] = set()

    @property
    def rows(self) -> int:
        """The number of rows so far."""
        return len(self._groups)

    @property
    def people(self) -> int:
        """The number of people that the rows so far name."""
        return len(self._people)

    def add(self, conversation: Conversation) -> None:
        """Take note of one kept row."""
        name = str(conversation.meta.get("group", conversation.id))
        group = self._hash("group", name)
        if group in self._parent:
            self._repeated[group] = name
        self._parent.setdefault(group, group)
        if opening := _opening(conversation):
            self._join(group, self._hash("opening", opening))
        if person := self._person(conversation):
            self._people.add(person)
            self._join(group, person)
        self._groups.append(group)
        self._starts.append(bool(conversation.meta.get("is_start", True)))

    def user(self, conversation: Conversation) -> str | None:
        """A name of no meaning for the person whose `conversation` is, the same in all of theirs;
        None where the source does not say."""
        person = self._person(conversation)
        return None if person is None else f"{person:016x}".translate(_LETTERS)

    def assign(self, *, openings: int, test: int, few: bool = False) -> list[int | None]:
        """Give the split of each row (an index into `SPLITS`), or None: a continuation of a
        conversation that opens one.

        `test` and `openings` are numbers of rows, met exactly where groups allow and never missed;
        openings are rows that begin with a person's real first turn. A group of more than ten rows
        and a twentieth of its split is trained on: one much-pasted prompt must not fill a test.
        Raises `StageError` when too few rows are left; with `few`, all of them are then trained on.
        """
        roots = [self._find(group) for group in self._groups]
        size, starts = (
            Counter(roots),
            Counter(r for r, s in zip(roots, self._starts, strict=True) if s),
        )
        split_of: dict[int, int] = {}
        for split, rows_of, rows in ((TEST, size, test), (OPENINGS, starts, openings)):
            missing = _fill(split_of, split, rows_of, rows)
            if (missing > 0 or len(split_of) == len(size)) and few:
                return [TRAIN] * len(roots)
            if missing > 0 or len(split_of) == len(size):
                raise StageError(
                    f"{len(roots)} conversations are left after cleaning, too few for {openings} "
                    f"openings, {test} test rows and something to train on{self._why(size)}; lower "
                    "corpus.openings and corpus.test, or add sources"
                )
        return [
            self._place_of(root, bool(start), split_of)
            for root, start in zip(roots, self._starts, strict=True)
        ]

    def _why(self, size: Counter[int]) -> str:
        """Where one group holds most rows, what they share."""
        root, rows = size.most_common(1)[0] if size else (0, 0)
        if rows < 2 or rows * 2 <= self.rows:
            return ""
        name = next((n for g, n in self._repeated.items() if self._find(g) == root), None)
        if name:
            shared = f"share the id or prefix {name!r}"
        elif any(self._find(person) == root for person in self._people):
            shared = "are one person's"
        else:
            shared = "begin with the same words"
        return f" ({rows} rows {shared}, so they go to one split)"

    @staticmethod
    def _place_of(root: int, start: bool, split_of: dict[int, int]) -> int | None:
        split = split_of.get(root, TRAIN)
        return None if split == OPENINGS and not start else split

    def _person(self, conversation: Conversation) -> int | None:
        person = conversation.meta.get("person")
        return self._hash("person", f"{conversation.source}\x1f{person}") if person else None

    def _hash(self, kind: str, text: str) -> int:
        digest = blake2b(
            f"{self._seed}\x1f{kind}\x1f{text}".encode("utf-8", "replace"), digest_size=8
        )
        return int.from_bytes(digest.digest(), "big")

    def _find(self, node: int) -> int:
        root = node
        while (above := self._parent.get(root, root)) != root:
            root = above
        while node != root:
            self._parent[node], node = root, self._parent.get(node, root)
        return root

    def _join(self, first: int, second: int) -> None:
        low, high = sorted((self._find(first), self._find(second)))
        self._parent.setdefault(low, low)
        self._parent[high] = low


def _fill(split_of: dict[int, int], split: int, rows_of: Counter[int], target: int) -> int:
    """Put groups into `split` in order of their hash until it has `target` rows; gives how many
    rows are missing.
    """
    biggest = max(10, target // 20)
    for may_overshoot in (False, True):
        for group in sorted(rows_of):  # the hash is the rank
            if target <= 0:
                return target
            rows = rows_of[group]
            if group not in split_of and rows <= biggest and (rows <= target or may_overshoot):
                split_of[group] = split
                target -= rows
    return target


def _opening(conversation: Conversation) -> str | None:
    if not conversation.meta.get("is_start", True):
        return None
    first = next((m["content"] for m in conversation.messages if m["role"] == "user"), "")
    normal = _SPACE.sub(" ", first[:2000]).strip().casefold()
    return normal if len(normal) >= _SHARED_OPENING_CHARS else None
