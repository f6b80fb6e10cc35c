"""Phone numbers: international ones anywhere, national ones by the regions of the text's language.

Which digits are a number, and how a region writes it, is for ``phonenumbers`` to say. It is asked
about short stretches of digits alone, and only for the regions in which the language of the text is
spoken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from hubkit.sensitive_data.language import identify
from hubkit.sensitive_data.rules import IN_NUMBERS, Finding, Rule, Text, digits_of

# Language → regions whose national formats are looked for, most speakers first.
REGIONS: dict[str, tuple[str, ...]] = {
    "en": ("US", "GB", "AU", "IN"),
    "de": ("DE", "AT", "CH"),
    "fr": ("FR", "BE", "CH", "CA"),
    "es": ("ES", "MX", "AR", "CO", "CL"),
    "pt": ("BR", "PT"),
    "it": ("IT", "CH"),
    "nl": ("NL", "BE"),
    "pl": ("PL",),
    "sv": ("SE",),
    "no": ("NO",),
    "nb": ("NO",),
    "da": ("DK",),
    "fi": ("FI",),
    "cs": ("CZ",),
    "ro": ("RO",),
    "hu": ("HU",),
    "el": ("GR",),
    "tr": ("TR",),
    "ru": ("RU", "KZ", "BY"),
    "uk": ("UA",),
    "bg": ("BG",),
    "ar": ("EG", "SA", "AE"),
    "he": ("IL",),
    "fa": ("IR",),
    "hi": ("IN",),
    "bn": ("BD", "IN"),
    "ur": ("PK",),
    "id": ("ID",),
    "ms": ("MY",),
    "vi": ("VN",),
    "th": ("TH",),
    "ko": ("KR",),
    "ja": ("JP",),
    "zh": ("CN", "TW", "HK"),
}
_DEFAULT = ("US", "GB")

_CANDIDATE = re.compile(
    r"(?<![\w.,/=#&$€£¥+-])(?<![A-Za-z]:)"
    r"(?:[+\uff0b]|00(?=[1-9]))?[(\uff08]?\d[\d ().\-/\u00a0\u2010-\u2015\uff08\uff09\uff0d]{5,2"
    r"2}\d"
    r"(?![A-Za-z0-9_=]|[-/]\w|\.\d)"
)
_AFTER_LETTERS = re.compile(
    r"(?<=[^\x00-\x7f])\+?\d[\d -]{8,16}\d(?![A-Za-z0-9_=.-])"
)  # a script without spaces touches its numbers
_WORDS = re.compile(
    r"phone|\btel\b|tel[.:]|call|mobile|\bcell|fax|whatsapp|\bsms|text me|reach me|ring me"
    r"|number is"
    r"|handy|telefon|rufnummer|téléphone|portable|appel|teléfono|móvil|celular|llám|telefone"
    r"|cellulare"
    r"|mobiel|bel me|komórk|numer|puhelin|телефон|тел\.|звон|電話|携帯|连系|电话|手机"
    r"|联系|전화|휴대폰|연락"
    r"|फोन|मोबाइल|โทร|هاتف|جوال|טלפון|điện thoại|\bsđt|telp|\bhp\b|ponsel|τηλ"
)
_OTHER_WORDS = re.compile(
    r"(?:isbn|issn|doi|order|invoice|ticket|tracking|account|acct|serial|version|model|part|sku"
    r"|id|case"
    r"|reference|ref|port|pid|line|error|code|routing|timestamp|epoch|page|pages|pp|rfc|cas"
    r"|patent"
    r"|订单号?|编号|注文番号|주문번호)\W{0,3}(?:number|no|nr|num|#|is)?\W{0,4}$"
)


class PhoneNumbers(Rule):
    """Finds phone numbers. See the module for how."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("phone_number", (_CANDIDATE, _AFTER_LETTERS), where=IN_NUMBERS)

    def findings(self, text: Text, hints: Sequence[str]) -> Iterator[Finding]:
        """Every phone number of `text`."""
        regions: tuple[str, ...] | None = None
        last = 0
        for match in _candidates(text):
            start, end = match.span()
            if start < last:
                continue
            digits = digits_of(match[0])
            if not 7 <= len(digits) <= 15 or _is_something_else(match[0], digits):
                continue
            lead = text.lower[max(0, start - 40) : start]
            if _OTHER_WORDS.search(lead):
                continue
            international = match[0][0] in "+\uff0b" or match[0].startswith("00")
            if not international and regions is None:
                regions = regions_of(text.value)
            named = bool(_WORDS.search(lead))
            if _is_phone(match[0], () if international else regions or (), named):
                last = end
                yield Finding(self.kind, start, end)


def _candidates(text: Text) -> Iterator[re.Match[str]]:
    for window in text.numbers:
        yield from _CANDIDATE.finditer(text.value, *window)
    if not text.value.isascii():
        for window in text.numbers:
            yield from _AFTER_LETTERS.finditer(text.value, *window)


_DATE = re.compile(
    r"(?:19|20)\d{2}[-/. ]\d{1,2}[-/. ]\d{1,2}\b|\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)\d{2}\b|(?:19"
    r"|20)\d{2} ?[-–] ?(?:19|20)\d{2}"
)


def _is_something_else(value: str, digits: str) -> bool:
    """Whether the digits are a date, an ISBN, a decimal number or a series."""
    from stdnum import isbn

    if _DATE.match(value) or len(set(digits)) < 3 or re.fullmatch(r"\d+\.\d+", value):
        return True
    if value.count("/") > 1 or value.count("(") != value.count(")"):
        return value.count("/") > 1
    if "555" in digits[-10:-4] and len(digits) in (10, 11):
        return True  # numbers of films
    if len(digits) in (10, 13) and "-" in value and value[0] != "+" and isbn.is_valid(value):
        return True
    groups = re.findall(r"\d+", value)
    return len(groups) > 3 and all(len(group) == 4 for group in groups)  # a card's or a code's


@lru_cache(maxsize=4096)
def _is_phone(value: str, regions: tuple[str, ...], named: bool) -> bool:
    """Whether `value` is a number of one of `regions` (none: an international one).

    Without a word such as "phone" before it, it must be written as its region writes it, with
    separators; a Chinese mobile number, which is written as one word, excepted."""
    import phonenumbers
    from phonenumbers import Leniency, PhoneNumberMatcher

    value = value.replace("\uff08", "(").replace("\uff09", ")").replace("\uff0b", "+")
    if value.startswith("00"):
        value = "+" + value[2:]
    if not regions:
        return _parsed_is_valid(phonenumbers, value, None)
    digits = digits_of(value)
    if named:
        return any(_parsed_is_valid(phonenumbers, value, region) for region in regions)
    if value.isdecimal():
        return "CN" in regions and re.fullmatch(r"1[3-9]\d{9}", digits) is not None
    if re.fullmatch(r"\d{3}[ .-]\d{4}|\d{1,4} \d{3,4}", value):
        return False
    for region in regions:
        for candidate in PhoneNumberMatcher(
            value, region, leniency=Leniency.EXACT_GROUPING, max_tries=2
        ):
            if candidate.end - candidate.start >= len(value) - 1 and _plausible(value, region):
                return True
    return False


def _plausible(value: str, region: str) -> bool:
    """North America's numbers have a hyphen, dot or parenthesis; the others begin with 0 or "("."""
    if region in ("US", "CA"):
        return re.search(r"[().-]", value) is not None
    if region in (
        "GB",
        "DE",
        "AT",
        "CH",
        "FR",
        "BE",
        "NL",
        "AU",
        "IT",
        "JP",
        "KR",
        "SE",
        "FI",
        "TR",
        "TH",
        "VN",
        "ID",
        "MY",
        "EG",
        "SA",
        "AE",
        "IL",
        "IN",
        "CN",
        "TW",
        "UA",
        "IR",
        "RO",
    ):
        return value[0] in "0(" or digits_of(value)[0] == "0"
    return True


def _parsed_is_valid(phonenumbers: Any, value: str, region: str | None) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(value, region)))
    except phonenumbers.NumberParseException:
        return False


_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
    ("he", re.compile("[\u0590-\u05ff]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("bn", re.compile("[\u0980-\u09ff]")),
    ("el", re.compile("[\u0370-\u03ff]{3}")),
)


def regions_of(text: str) -> tuple[str, ...]:
    """The regions in which the language of `text` is spoken; those of English where unclear."""
    for language, script in _SCRIPTS:
        if script.search(text):
            return REGIONS[language]
    letters = re.sub(r"[^\w\s]|\d", " ", text[:2000])
    if text.isascii() and len(letters.split()) < 3:
        return _DEFAULT
    language, _ = identify(" ".join(letters.split()))
    return tuple(dict.fromkeys((*REGIONS.get(language, ()), *_DEFAULT)))
