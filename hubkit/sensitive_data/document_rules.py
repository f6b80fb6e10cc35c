"""Rules for numbers of documents: national identities, passports, licences, devices, vehicles.

Formats and check digits are python-stdnum's. A number whose format many other numbers share is
taken for a person's only where a word that names it stands before it."""

from __future__ import annotations

import re
from importlib import import_module

from hubkit.sensitive_data.rules import (
    NAMED_NUMBER,
    Check,
    Match,
    Rule,
    Where,
    before,
    digits_of,
    is_placeholder,
    number_rule,
    rule,
    value_of,
)

_L, _R = r"(?<![\w.,/=+-])", r"(?![\w/=]|[-.]\w)"

# stdnum's module, pattern, and the words of which one must stand before it (none: the format and
# its check digits say enough).
_NATIONAL = (
    ("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}", "999.999.999-99", ""),
    ("br.cpf", r"\d{9}-?\d{2}", "9999999", "cpf"),
    ("fr.nir", r"[12] ?\d{2} ?[01]\d ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", "99999", ""),
    ("it.codicefiscale", r"[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]", "AAAAAA99A99A999A", ""),
    ("es.dni", r"\d{8}-?[A-Z]", "99999999A|99999999-A", ""),
    ("es.nie", r"[XYZ]-?\d{7}-?[A-Z]", "A9999999|A-9999999", ""),
    (
        "de.idnr",
        r"\d{2} ?\d{3} ?\d{3} ?\d{3}",
        "99999|99 999 999",
        "steuer|tax id|idnr|identifikationsnummer|tin|tax number",
    ),
    ("nl.bsn", r"\d{9}|\d{4}\.\d{2}\.\d{3}", "999999999|9999.99.999", "bsn|burgerservice|sofi"),
    ("be.nn", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "99.99.99-999.99", ""),
    ("se.personnummer", r"(?:19|20)?\d{6}[-+]\d{4}", "999999-9999|999999+9999", ""),
    ("se.personnummer", r"(?:19|20)?\d{10}", "9999999999", "personnummer|personal number"),
    (
        "no.fodselsnummer",
        r"\d{6} ?\d{5}",
        "999999 99999|99999999999",
        "fødselsnummer|fodselsnummer|personnummer|national id|norwegian id|fnr",
    ),
    ("dk.cpr", r"\d{6}-\d{4}", "999999-9999", "cpr|personnummer"),
    (
        "fi.hetu",
        r"\d{6}[-+ABCDEFYXWVU]\d{3}[0-9A-FHJ-NPR-Y]",
        "999999-999|999999+999|999999A999",
        "",
    ),
    ("pl.pesel", r"\d{11}", "99999999999", "pesel"),
    ("pt.nif", r"\d{9}|\d{3} \d{3} \d{3}", "999999999|999 999 999", r"\bnif\b|contribuinte"),
    ("cn.ric", r"\d{17}[\dXx]", "99999999999999999", ""),
    ("kr.rrn", r"\d{6}-[1-4]\d{6}", "999999-9999999", ""),
    ("in_.aadhaar", r"(?<!\d )\d{4}[ -]\d{4}[ -]\d{4}(?! \d)", "9999 9999 9999|9999-9999-9999", ""),
    ("in_.aadhaar", r"\d{12}", "999999999999", "aadhaar|aadhar|uidai|आधार"),
    (
        "in_.pan",
        r"[A-Z]{3}[ABCFGHLJPTK][A-Z]\d{4}[A-Z]",
        "AAAAA9999A",
        r"\bpan\b|permanent account|income tax",
    ),
    ("gb.nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "999 999 9999|999-999-9999|9999999999", "nhs"),
    (
        "ca.sin",
        r"\d{3}[ -]?\d{3}[ -]?\d{3}",
        "999 999 999|999-999-999|999999999",
        r"\bsin\b|social insurance|\bnas\b",
    ),
    ("au.tfn", r"\d{3} ?\d{3} ?\d{3}", "999 999 999|999999999", r"\btfn\b|tax file"),
    ("za.idnr", r"\d{6} ?\d{4} ?\d{3}", "999999 9999|9999999999999", r"\bid\b|identity"),
    ("tr.tckimlik", r"\d{11}", "99999999999", "kimlik|tckn|tc no|t\\.c\\.|turkish id"),
    ("il.idnr", r"\d{9}", "999999999", "teudat|zehut|israeli id|ת.ז|תעודת זהות"),
    ("ru.inn", r"\d{12}|\d{10}", "9999999999", r"инн|\binn\b"),
    ("mx.curp", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d", "AAAA999999", ""),
    ("mx.rfc", r"[A-ZÑ&]{4}\d{6}[A-Z0-9]{3}", "AAAA999999", "rfc"),
    ("ar.dni", r"\d{2}\.?\d{3}\.?\d{3}", "99.999.999|99999999", r"\bdni\b"),
    ("ar.cuit", r"(?:20|23|24|27)-\d{8}-\d", "99-99999999-9", ""),
    ("cl.rut", r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", ".999.999-", ""),
    ("cl.rut", r"\d{7,8}-[\dkK]", "9999999-", r"\brut\b|\brun\b"),
    ("ro.cnp", r"[1-8]\d{12}", "9999999999999", r"\bcnp\b|cod numeric"),
    ("cz.rc", r"\d{6}/\d{3,4}", "999999/999", "rodné|rodne|rodný|birth number"),
    ("bg.egn", r"\d{10}", "9999999999", "егн|egn"),
    ("hr.oib", r"\d{11}", "99999999999", r"\boib\b"),
    ("ee.ik", r"[1-6]\d{10}", "99999999999", "isikukood|personal code"),
    ("lt.asmens", r"[3-6]\d{10}", "99999999999", "asmens|personal code"),
    ("ch.ssn", r"756\.\d{4}\.\d{4}\.\d{2}", "999.9999.9999.99", ""),
    ("at.vnr", r"\d{4} ?\d{6}", "9999 999999|9999999999", "versicherung|svnr|sv-nummer|vnr"),
    ("ie.pps", r"\d{7}[A-W][ABWTXZ]?", "9999999A", r"\bpps"),
    ("us.itin", r"9\d{2}-\d{2}-\d{4}", "999-99-9999", "itin|taxpayer"),
    ("us.ein", r"\d{2}-\d{7}", "99-9999999", r"\bein\b|employer id"),
    ("my.nric", r"\d{6}-\d{2}-\d{4}", "999999-99-9999", ""),
    ("th.pin", r"\d-\d{4}-\d{5}-\d{2}-\d", "9-9999-99999-99-9", ""),
    ("pk.cnic", r"\d{5}-\d{7}-\d", "99999-9999999-9", ""),
    ("id.nik", r"\d{16}", "9999999999999999", r"\bnik\b|ktp"),
    ("nz.ird", r"\d{2,3}-?\d{3}-?\d{3}", "999-999|99999999", r"\bird\b"),
    ("gr.amka", r"\d{11}", "99999999999", "amka|αμκα"),
)

# Formats that stdnum does not know, by a check of our own or by the words before them.
_NATIONAL_BY_WORDS = (
    (
        r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]",
        "AA 99 99 99|AA99",
        "",
    ),  # UK NINO
    (
        r"[1-9][AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y]\d-?[AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y]\d-?"
        r"[AC-HJKMNP-RT-Y]{2}\d{2}",
        "AA99",
        "medicare|mbi",
    ),
    (r"\d{3}-?\d{3}-?\d{3} ?\d{2}", "999-999|999999999", "снилс|snils"),
    (r"\d{4}[ -]?\d{4}[ -]?\d{4}", "9999", "マイナンバー|個人番号|my number|individual number"),
    (r"[2-6]\d{3} ?\d{5} ?\d", "9999 99999|9999999999", "medicare"),
    (r"\d{2} ?\d{2} ?\d{6}", "999999", "паспорт|passport"),
)


def national_rules() -> tuple[Rule, ...]:
    """Rules for numbers that a state gives to a person."""
    rules = [
        number_rule(
            "us_social_security_number",
            rf"{_L}\d{{3}}-\d{{2}}-\d{{4}}{_R}",
            check=_ssn,
            shapes="999-99-9999",
        ),
        rule(
            "us_social_security_number",
            "ssn social",
            r"(?:\bssn\b|social security)(?: number| no| #)?\W{0,4}(?:is "
            r")?\W{0,2}(?P<value>\d{3}[ -]?\d{2}[ -]?\d{4})(?![\w-])",
            check=_ssn,
            folded=True,
            where=NAMED_NUMBER,
        ),
    ]
    for module, pattern, shapes, context in _NATIONAL:
        check = _stdnum_check(module, named=bool(context))
        rules.append(_national(pattern, check, shapes, context))
    for pattern, shapes, context in _NATIONAL_BY_WORDS:
        rules.append(_national(pattern, _is_number, shapes, context))
    return tuple(rules)


def _national(pattern: str, check: Check, shapes: str, context: str) -> Rule:
    whole = f"{_L}(?:{pattern}){_R}"
    return number_rule("national_id", whole, check=check, shapes=shapes, context=context)


def _stdnum_check(module: str, *, named: bool) -> Check:
    def check(match: Match) -> bool:
        if not named and _OTHER_NUMBER.search(before(match, 16)):
            return False
        digits = digits_of(match[0])
        if digits in "0123456789012345678" or len(set(digits)) < 3:
            return False
        return bool(import_module(f"stdnum.{module}").is_valid(match[0]))

    return check


_OTHER_NUMBER = re.compile(
    r"(?:order|invoice|ticket|tracking|part|serial|sku|isbn|doi|rfc|#)\W{0,6}(?:no\W{0,2})?$"
)


def _is_number(match: Match) -> bool:
    digits = digits_of(match[0])
    return len(digits) >= 5 and len(set(digits)) > 2 and digits not in "01234567890"


def _ssn(match: Match) -> bool:
    from stdnum.us import ssn

    digits = digits_of(match[0])[-9:]
    value = f"{digits[:3]}-{digits[3:5]}-{digits[5:]}"
    return bool(ssn.is_valid(value)) and value != "123-45-6789"


def document_rules() -> tuple[Rule, ...]:
    """Rules for passports, licences, insurances, devices and vehicles."""
    number = r"(?: ?(?:number|no|nr|nummer|num|n°|#|id))?\.?\W{0,4}(?:is|ist|was|:|=)?\W{0,3}"
    passport = (
        rf"(?:passport|reisepass|passeport|pasaporte|passaporto|passaporte|paspoort|护照号?码?"
        rf"|パスポート番号)(?:nummer)?{number}"
        r"(?P<value>[A-Z]{0,2}\d{6,9}[A-Z]?|(?=[A-Z]{0,4}\d)[A-Z0-9]{9})(?![\w-])"
    )
    machine = r"P[A-Z<][A-Z]{3}[A-Z<]{39}\s{1,3}[A-Z0-9<]{44}"
    licence = (
        r"(?:driver'?s?|driving) licen[sc]e"
        + number
        + r"(?P<value>[A-Z0-9][A-Z0-9 -]{4,18}[A-Z0-9])(?!\w)",
        r"(?:führerschein|permis de conduire|permiso de conducir|patente)(?:nummer)?"
        + number
        + r"(?P<value>[A-Z0-9]{8,16})(?!\w)",
    )
    card = (
        r"\b(?:health|insurance|health insurance|patient|medical record|mrn|member|policy|tax|tin"
        r"|national id|national identity|id card|identity card|voter|visa)(?: id| card)?"
        + number
        + r"(?P<value>(?=[A-Z-]{0,4}\d)[A-Z0-9-]{8,18})(?!\w)"
    )
    imei = (
        r"\b(?:imei|meid)\b" + number + r"(?P<value>\d{2}[ -]?\d{6}[ -]?\d{6}[ "
        r"-]?\d(?:\d)?)(?!\d)"
    )
    serial = (
        r"\b(?:udid|idfa|gaid|advertising id|device id|android id)\b\W{0,4}(?:is "
        r")?(?P<value>[0-9A-Fa-f-]{16,40})\b"
    )
    vin = r"\b(?:vin|chassis)\b" + number + r"(?P<value>[A-HJ-NPR-Z0-9]{17})\b"
    plate = (
        r"(?:licen[sc]e plate|number plate|licen[sc]e tag|plate number|registration plate"
        r"|kennzeichen|matrícula|targa|plaque)"
        + number
        + r"(?P<value>[A-ZÄÖÜ0-9]{1,4}[ -]?[A-Z0-9]{1,4}(?:[ -]?[A-Z0-9]{1,4})?)(?!\w)"
    )
    return (
        rule(
            "passport_number",
            "passport reisepass passeport pasaporte passaporto passaporte paspoort 护照 パスポート",
            passport,
            check=_has_digits,
            folded=True,
            where=NAMED_NUMBER,
        ),
        rule("passport_number", "P<", machine),
        rule(
            "national_id",
            "health insurance patient medical mrn member policy tax tin identity card voter visa",
            card,
            check=_is_document,
            folded=True,
            where=NAMED_NUMBER,
        ),
        rule(
            "drivers_licence",
            "driver driving führerschein permis permiso patente",
            *licence,
            check=_has_digits,
            folded=True,
            where=NAMED_NUMBER,
        ),
        rule("device_id", "imei meid", imei, check=_imei, folded=True, where=NAMED_NUMBER),
        rule(
            "device_id",
            "udid idfa gaid advertising device android",
            serial,
            check=_has_digits,
            folded=True,
            where=NAMED_NUMBER,
        ),
        rule("vehicle_id", "vin chassis", vin, check=_has_digits, folded=True, where=NAMED_NUMBER),
        rule(
            "vehicle_id",
            _PLATE_HINTS,
            plate,
            check=_is_plate,
            folded=True,
            where=Where(lead=0, reach=1),
        ),
    )


_PLATE_HINTS = (
    "license plate",
    "licence plate",
    "license tag",
    "licence tag",
    "number plate",
    "plate number",
    "registration plate",
    "kennzeichen",
    "matrícula",
    "targa",
    "plaque",
)


def _has_digits(match: Match) -> bool:
    value = value_of(match)
    return sum(c.isdigit() for c in value) >= 4 and not is_placeholder(value)


def _is_document(match: Match) -> bool:
    value = value_of(match)
    is_date = re.match(r"(?:19|20)\d{2}-\d{2}|\d{2}-\d{2}-\d{4}", value) is not None
    return not is_date and sum(c.isdigit() for c in value) >= 5 and not is_placeholder(value)


def _is_plate(match: Match) -> bool:
    value = value_of(match)
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def _imei(match: Match) -> bool:
    from stdnum import luhn

    digits = digits_of(value_of(match))
    return len(digits) == 16 or bool(luhn.is_valid(digits))
