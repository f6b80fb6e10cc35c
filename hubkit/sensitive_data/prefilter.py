"""Which of many literals a text may hold, found in one pass over it.

A text is turned into the set of its runs of three bytes; a literal can only be there where all of
its own are, and one that is shorter is looked for. The answer may name a literal that is not there,
never leave out one that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_RUN_BYTES = 3
_MOST_RUNS = 6  # of a literal that are compared
_CODES = 1 << 16


class Prefilter:
    """Literals, compared in lower case; ask it which of them a text may hold."""

    def __init__(self, literals: Sequence[str]) -> None:
        import numpy as np

        lower = [literal.lower() for literal in literals]
        codes = [_codes(_encoded(literal)) for literal in lower]
        self._short = [(at, lower[at]) for at, runs in enumerate(codes) if not len(runs)]
        self._long = np.array([at for at, runs in enumerate(codes) if len(runs)], np.intp)
        rows = [np.resize(runs[:_MOST_RUNS], _MOST_RUNS) for runs in codes if len(runs)]
        self._runs = np.array(rows, np.intp).reshape(-1, _MOST_RUNS)

    def possible(self, lower: str) -> list[int]:
        """The places, in the list of literals, of those that `lower` (in lower case) may hold."""
        import numpy as np

        present = np.zeros(_CODES, np.bool_)
        present[_codes(_encoded(lower))] = True
        long_literals: list[int] = self._long[present[self._runs].all(axis=1)].tolist()
        return sorted([*(at for at, literal in self._short if literal in lower), *long_literals])


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _codes(data: bytes) -> npt.NDArray[np.uint16]:
    """A number for each run of three bytes: letters differ in their last five bits."""
    import numpy as np

    values = np.frombuffer(data, np.uint8).astype(np.uint16)
    if len(values) < _RUN_BYTES:
        return np.empty(0, np.uint16)
    return (values[:-2] << np.uint16(10)) ^ (values[1:-1] << np.uint16(5)) ^ values[2:]
