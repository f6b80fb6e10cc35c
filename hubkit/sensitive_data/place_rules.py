"""Rules for places and birth dates: coordinates, street addresses in a dozen languages."""

from __future__ import annotations

import re

from hubkit.sensitive_data.rules import (
    Match,
    Rule,
    before,
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
        rf"(?:@|geo:|q=|ll=|query=|\(|\[){decimal},\s?{long_decimal}(?!\d|,\s?-?\d+\.\d+,\s?-?\d)",
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
        rule(
            "coordinates",
            "",
            *coordinates[:2],
            check=_coordinates,
            gate=r"\.\d{4,15}°?\s?[NS]?,\s?-?\d{1,3}\.\d{4}",
        ),
        rule("coordinates", "lat", coordinates[2], folded=True, reach=160),
        rule("coordinates", "°", coordinates[3]),
        Rule(
            "date_of_birth",
            (re.compile(f"{birth}(?P<value>{date})", re.IGNORECASE),),
            _BIRTH_WORDS,
            folded=True,
            reach=160,
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
        ("Box", rf"\bP\.? ?O\.? Box \d{{1,6}}(?:,? (?:{_CAP},? ){{1,4}}[A-Z]{{2}} \d{{5}})?"),
        (
            "straße strasse str. weg platz allee gasse ring damm ufer Straße Weg Platz Allee",
            r"[A-ZÄÖÜ][\wäöüß.-]{1,30}(?:straße|strasse|str\.|weg|platz|allee|gasse|ring|damm"
            r"|ufer|Straße|Weg|Platz|Allee)"
            r" \d{1,4} ?[a-z]?,? {1,2}(?:[A-Z]{1,2}-)?\d{4,5} [A-ZÄÖÜ][\wäöüß-]{2,30}",
        ),
        (
            "rue avenue boulevard place chemin allée impasse quai cours route",
            r"\b\d{1,4}(?: ?bis| ?ter)?,? (?:rue|avenue|boulevard|place|chemin|allée|impasse"
            r"|quai|cours|route)"
            rf" [^\n,\d]{{2,40}},? \d{{5}} {_CAP}",
        ),
        (
            "Calle C/ Avda Avenida Plaza Paseo Carrera",
            r"\b(?:Calle|C/|Avda\.?|Avenida|Plaza|Paseo|Carrera) ?[^\n,\d]{2,40},? "
            r"(?:n[ºo°.]{1,2} ?)?\d{1,4}"
            rf"(?:,? ?[^\n,]{{1,12}})?,? \d{{5}} {_CAP}",
        ),
        (
            "Via Viale Piazza Corso Largo Vicolo",
            rf"\b(?:Via|Viale|Piazza|Corso|Largo|Vicolo) [^\n,\d]{{2,40}},? \d{{1,4}}[a-z]?,? "
            rf"\d{{5}} {_CAP}",
        ),
        (
            "straat laan weg plein gracht kade dreef singel",
            r"\b[A-Z][\w-]{2,30}(?:straat|laan|weg|plein|gracht|kade|dreef|singel) "
            r"\d{1,4}[a-z]?,? \d{4} ?[A-Z]{2}\b(?: [A-Z]\w{2,20})?",
        ),
        (
            "Rua Avenida Av. Travessa Alameda Praça",
            r"\b(?:Rua|Avenida|Av\.|Travessa|Alameda|Praça) [^\n,\d]{2,40},? (?:n[ºo°.]{1,2} "
            r"?)?\d{1,5}[^\n]{0,50}?\d{5}-?\d{3}",
        ),
        ("ul.", rf"\bul\. [^\n,\d]{{2,30}} \d{{1,4}}(?:/\d{{1,4}})?,? \d{{2}}-\d{{3}} {_CAP}"),
        (
            "ул. улица проспект пр-т пер.",
            r"(?:ул\.|улица|проспект|пр-т|пер\.) ?[^\n,\d]{2,30},? (?:д\. ?|дом "
            r")?\d{1,4}[^\n]{0,6}(?:,? ?кв\. ?\d{1,4})?",
        ),
        (
            "都 道 府 県",
            r"(?:〒\s?\d{3}-\d{4}\s{0,2})?(?:東京都|北海道|(?:大阪|京都)府"
            r"|[\u4e00-\u9fff]{2,3}県)[\u4e00-\u9fff\u3040-\u30ff]{1,12}[市区町村]"
            r"[\u4e00-\u9fff\u3040-\u30ff0-9０-９丁目番地号\s-]{0,20}?[\d０-９]{1,4}(?:[-－‐丁目番地号の]{1,2}["
            r"\d０-９]{1,4}){0,2}",
        ),
        (
            "号",
            r"(?:[\u4e00-\u9fff]{2,8}[省市])?[\u4e00-\u9fff]{1,8}[市区县][\u4e00-\u9fff]{1,12}(?:路|街"
            r"|道|巷|胡同)\d{1,5}号"
            r"(?:[\u4e00-\u9fff\d]{0,12}[室楼])?",
        ),
        (
            "로 길",
            r"[가-힣]{2,8}(?:시|도|특별시|광역시) [가-힣]{1,6}[구군시] [가-힣\d]{1,12}(?:로|길) "
            r"?\d{1,4}(?:-\d{1,3})?",
        ),
    )
    streets = tuple(f" {word}" for word in _STREET.split("|"))
    return (
        Rule("street_address", (re.compile(us),), streets, _us_address, gate=_STREET_GATE),
        *(
            Rule("street_address", (re.compile(pattern),), tuple(hints.split()), reach=200)
            for hints, pattern in local
        ),
    )


_STREET_GATE = re.compile(rf"\d[A-Z]? [^\d\n]{{3,60}}?(?:{_STREET})\b")
_HOME_WORDS = re.compile(
    r"\b(?:address|i live|we live|lives? at|living at|home is|house is|ship(?:ping)?|deliver"
    r"|mail|send (?:it )?to|reside|moved to)\b[^\n.]{0,40}$"
)


def _us_address(match: Match) -> bool:
    return match["town"] is not None or bool(_HOME_WORDS.search(before(match, 64)))
