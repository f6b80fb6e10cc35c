"""Rules for places and birth dates: coordinates, street addresses in a dozen languages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hubkit.sensitive_data.rules import (
    NAMED_NUMBER,
    Match,
    Rule,
    Text,
    Where,
    before,
    number_rule,
    rule,
    words,
)


def place_rules() -> tuple[Rule, ...]:
    """Rules for coordinates, birth dates and street addresses."""
    decimal = r"-?\d{1,2}\.\d{4,15}"
    long_decimal = r"-?\d{1,3}\.\d{4,15}"
    coordinates = (
        rf"(?<![\w.,\[(-])(?<!, ){decimal}°?\s?[NS]?,\s?{long_decimal}°?\s?[EWO]?(?![\w.\])]"
        rf"|,\s?-?\d)",
        rf"(?:@|geo:|q=|ll=|query=|\(|\[){decimal},\s?{long_decimal}(?!\d|,\s?-?\d{{1,15}}\.\d{{1,15}},\s?-?\d)",
        rf"\blat(?:itude)?\"?\W{{1,4}}{decimal}°?[\s,;\"]{{1,4}}(?:and )?\"?(?:lon|lng|long"
        rf"|longitude)\"?\W{{1,4}}{long_decimal}",
        r"\b\d{1,2}\s?°\s?\d{1,2}\s?['′’]\s?(?:\d{1,2}(?:[.,]\d{1,4})?\s?(?:[\"″”]"
        r"|'')\s?)?[NS]\W{1,4}"
        r"\d{1,3}\s?°\s?\d{1,2}\s?['′’]\s?(?:\d{1,2}(?:[.,]\d{1,4})?\s?(?:[\"″”]|'')\s?)?[EWO]",
    )
    date = (
        r"(?:\d{1,4}[./ -]\d{1,2}[./ -]\d{1,4}|\d{1,2}(?:st|nd|rd|th)?\.? (?:of "
        r")?[^\W\d]{3,12}\.?,? (?:de )?(?:19|20)\d{2}"
        r"|[^\W\d]{3,12}\.? \d{1,2}(?:st|nd|rd|th)?,? (?:19|20)\d{2}"
        r"|\d{4}年\s?\d{1,2}月\s?\d{1,2}日|\d{4}년\s?\d{1,2}월\s?\d{1,2}일)"
    )
    birth = (
        r"(?:date of birth|birth ?date|\bd\.?o\.?b\b\.?|birthday(?: is)?|i was born(?: on)?"
        r"|geburtsdatum"
        r"|geburtstag|ich bin am|geboren am|date de naissance|née? le|je suis née? le|fecha de "
        r"nacimiento"
        r"|nací el|data de nascimento|data di nascita|nat[oa] il|geboortedatum|födelsedatum"
        r"|data urodzenia"
        r"|дата рождения|生年月日|出生日期|出生年月日|생년월일)\W{0,6}(?:is |on |ist |es )?"
    )
    return (
        number_rule("coordinates", *coordinates[:2], check=_coordinates, shapes=".9999"),
        rule("coordinates", "lat", coordinates[2], folded=True, where=NAMED_NUMBER),
        rule("coordinates", "°", coordinates[3], where=Where(lead=4, reach=80)),
        Rule(
            "date_of_birth",
            (re.compile(f"{birth}(?P<value>{date})", re.IGNORECASE),),
            _BIRTH_WORDS,
            folded=True,
            where=NAMED_NUMBER,
        ),
        *_address_rules(),
    )


_BIRTH_WORDS = (
    *words(
        """birth dob d.o.b born geburt geboren naissance nacimiento nací nascimento nascita geboorte
    födelse urodzenia рождения 生年月日 出生 생년월일"""
    ),
    "ich bin am",
    "né le",
    "née le",
    "nato il",
    "nata il",
)
_PLACE_WORDS = re.compile(
    r"lat|lon|gps|coord|location|position|live|home|house|maps|geo|find me|meet|i'm at"
)


def _coordinates(match: Match) -> bool:
    latitude, longitude = (abs(float(n)) for n in re.findall(r"\d{1,3}\.\d{4,15}", match[0])[:2])
    if latitude > 90 or longitude > 180:
        return False
    named = bool(_PLACE_WORDS.search(before(match))) or match[0][0] in "@gql"
    return named or (match[0][0] not in "([" and latitude >= 2 and longitude >= 2)


_STREET = (
    r"Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Way|Place|Pl|Terrace"
    r"|Ter"
    r"|Circle|Cir|Square|Sq|Parkway|Pkwy|Highway|Hwy|Crescent|Close|Gardens|Grove|Trail"
)
_STREETS = tuple(f" {word}" for word in _STREET.split("|"))
_CAP = r"[A-Z\u00c0-\u00de][\w\u00c0-\u024f'’.-]{0,30}"


def _address_rules() -> tuple[Rule, ...]:
    us = (
        rf"(?<![\w.#-])\d{{1,6}}[A-Z]? (?:[NSEW]{{1,2}}\.? )?(?:{_CAP} |\d{{1,3}}(?:st|nd|rd"
        rf"|th) ){{1,4}}(?:{_STREET})\b\.?"
        r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|#)\.? ?#?\w{1,6})?"
        rf"(?P<town>,?\s(?:{_CAP},?\s){{1,4}}(?:[A-Z]{{2}}\.? )?(?:\d{{5}}(?:-\d{{4}})?"
        rf"|[A-Z]{{1,2}}\d[A-Z\d]? ?\d[A-Z]{{2}}|[A-Z]\d[A-Z] ?\d[A-Z]\d|\d{{4}}))?"
    )
    local = (
        (
            "Box",
            rf"\bP\.? ?O\.? Box \d{{1,6}}(?:,? (?:{_CAP},? ){{1,4}}[A-Z]{{2}} \d{{5}})?",
            False,
        ),
        (
            "straße strasse str. weg platz allee gasse ring damm ufer Straße Weg Platz Allee",
            r"[A-ZÄÖÜ][\wäöüß.-]{1,30}(?:straße|strasse|str\.|weg|platz|allee|gasse|ring|damm"
            r"|ufer|Straße|Weg|Platz|Allee)"
            r" \d{1,4} ?[a-z]?,? {1,2}(?:[A-Z]{1,2}-)?\d{4,5} [A-ZÄÖÜ][\wäöüß-]{2,30}",
            True,
        ),
        (
            "rue avenue boulevard place chemin allée impasse quai cours route",
            r"\b\d{1,4}(?: ?bis| ?ter)?,? (?:rue|avenue|boulevard|place|chemin|allée|impasse"
            r"|quai|cours|route)"
            rf" [^\n,\d]{{2,40}},? \d{{5}} {_CAP}",
            True,
        ),
        (
            "Calle C/ Avda Avenida Plaza Paseo Carrera",
            r"\b(?:Calle|C/|Avda\.?|Avenida|Plaza|Paseo|Carrera) ?[^\n,\d]{2,40},? "
            r"(?:n[ºo°.]{1,2} ?)?\d{1,4}"
            rf"(?:,? ?[^\n,]{{1,12}})?,? \d{{5}} {_CAP}",
            True,
        ),
        (
            "Via Viale Piazza Corso Largo Vicolo",
            rf"\b(?:Via|Viale|Piazza|Corso|Largo|Vicolo) [^\n,\d]{{2,40}},? \d{{1,4}}[a-z]?,? "
            rf"\d{{5}} {_CAP}",
            True,
        ),
        (
            "straat laan weg plein gracht kade dreef singel",
            r"\b[A-Z][\w-]{2,30}(?:straat|laan|weg|plein|gracht|kade|dreef|singel) "
            r"\d{1,4}[a-z]?,? \d{4} ?[A-Z]{2}\b(?: [A-Z]\w{2,20})?",
            True,
        ),
        (
            "Rua Avenida Av. Travessa Alameda Praça",
            r"\b(?:Rua|Avenida|Av\.|Travessa|Alameda|Praça) [^\n,\d]{2,40},? (?:n[ºo°.]{1,2} "
            r"?)?\d{1,5}[^\n]{0,50}?\d{5}-?\d{3}",
            True,
        ),
        (
            "ul.",
            rf"\bul\. [^\n,\d]{{2,30}} \d{{1,4}}(?:/\d{{1,4}})?,? \d{{2}}-\d{{3}} {_CAP}",
            True,
        ),
        (
            "ул. улица проспект пр-т пер.",
            r"(?:ул\.|улица|проспект|пр-т|пер\.) ?[^\n,\d]{2,30},? (?:д\. ?|дом "
            r")?\d{1,4}[^\n]{0,6}(?:,? ?кв\. ?\d{1,4})?",
            False,
        ),
        (
            "都 道 府 県",
            r"(?:〒\s?\d{3}-\d{4}\s{0,2})?(?:東京都|北海道|(?:大阪|京都)府"
            r"|[\u4e00-\u9fff]{2,3}県)[\u4e00-\u9fff\u3040-\u30ff]{1,12}[市区町村]"
            r"[\u4e00-\u9fff\u3040-\u30ff0-9０-９丁目番地号\s-]{0,20}?[\d０-９]{1,4}(?:[-－‐丁目番地号の]{1,2}["
            r"\d０-９]{1,4}){0,2}",
            False,
        ),
        (
            "号",
            r"(?:[\u4e00-\u9fff]{2,8}[省市])?[\u4e00-\u9fff]{1,8}[市区县][\u4e00-\u9fff]{1,12}(?:路|街"
            r"|道|巷|胡同)\d{1,5}号"
            r"(?:[\u4e00-\u9fff\d]{0,12}[室楼])?",
            False,
        ),
        (
            "로 길",
            r"[가-힣]{2,8}(?:시|도|특별시|광역시) [가-힣]{1,6}[구군시] [가-힣\d]{1,12}(?:로|길) "
            r"?\d{1,4}(?:-\d{1,3})?",
            False,
        ),
    )
    return (
        _StreetAddresses(re.compile(us)),
        *(
            Rule(
                "street_address",
                (re.compile(pattern),),
                tuple(hints.split()),
                where=Where(reach=200, near="numbers" if postcode else "text"),
            )
            for hints, pattern, postcode in local
        ),
    )


class _StreetAddresses(Rule):
    """Addresses that begin with a number and a name, looked for at every number before a name."""

    __slots__ = ()

    def __init__(self, pattern: re.Pattern[str]) -> None:
        super().__init__("street_address", (pattern,), _STREETS, check=_us_address)

    def matches(self, text: Text, hints: Sequence[str]) -> Iterator[Match]:
        """What the pattern finds at such numbers."""
        if not any(hint in text.value for hint in hints):
            return
        for number in _NUMBER_AND_NAME.finditer(text.shape):
            if match := self.patterns[0].match(text.value, number.start()):
                yield match


_NUMBER_AND_NAME = re.compile(r"9{1,6}A?(?= [A9])")
_HOME_WORDS = re.compile(
    r"\b(?:address|i live|we live|lives? at|living at|home is|house is|ship(?:ping)?|deliver"
    r"|mail|send (?:it )?to|reside|moved to)\b[^\n.]{0,40}$"
)


def _us_address(match: Match) -> bool:
    return match["town"] is not None or bool(_HOME_WORDS.search(before(match, 64)))
