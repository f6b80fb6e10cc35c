"""Rules for personal data: addresses, numbers of people, accounts, devices and documents.

Checksums and formats of documents are python-stdnum's. A number whose format many other numbers
share is taken for a person's only where a word such as "passport" stands before it. Names, ages
and opinions are not looked for: no pattern finds them."""

from __future__ import annotations

import ipaddress
import re
from functools import cache

from hubkit.sensitive_data.document_rules import document_rules, national_rules
from hubkit.sensitive_data.phones import PhoneNumbers
from hubkit.sensitive_data.place_rules import place_rules
from hubkit.sensitive_data.rules import (
    NAMED_NUMBER,
    Match,
    Rule,
    Where,
    before,
    digits_of,
    number_rule,
    rule,
    value_of,
    words,
)
from hubkit.sensitive_data.secret_rules import base58check

KINDS = frozenset(
    {
        "bank_account",
        "coordinates",
        "credit_card",
        "crypto_address",
        "date_of_birth",
        "device_id",
        "drivers_licence",
        "email",
        "iban",
        "ip_address",
        "mac_address",
        "national_id",
        "passport_number",
        "phone_number",
        "profile_url",
        "street_address",
        "us_social_security_number",
        "vehicle_id",
    }
)


@cache
def personal_rules() -> tuple[Rule, ...]:
    """Every rule for personal data, compiled at first use."""
    return (
        *_email_rules(),
        PhoneNumbers(),
        *_account_rules(),
        *national_rules(),
        *_network_rules(),
        *place_rules(),
        *document_rules(),
    )


_LETTER = r"A-Za-z0-9\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff"


def _email_rules() -> tuple[Rule, ...]:
    plain = (
        rf"(?<![{_LETTER}.+%_-])[{_LETTER}.+%_'-]{{1,64}}(?:@|＠)"
        rf"(?:[{_LETTER}-]{{1,63}}\.){{1,6}}[A-Za-z\u00c0-\u04ff]{{2,24}}(?![A-Za-z0-9])"
    )
    quoted = r"mailto:(?P<value>[^\s?\"'<>]{1,64}(?:@|%40)[A-Za-z0-9.-]{3,120})"
    cjk = r"[\w.+-]{1,64}@[\u3040-\u30ff\u4e00-\u9fff]{1,30}\.[\w\u4e00-\u9fff]{2,10}"
    encoded = (
        r"(?<![\w.])[\w.+-]{1,64}(?:%40|&#64;|&#x40;"
        r"|&commat;)(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}"
    )
    at, dot = (
        r"(?: ?[\[({<] ?(?:[aA][tT]|@|ät) ?[\])}>] ?|_at_| AT )",
        r"(?: ?[\[({<] ?(?:dot|punkt|point|\.) ?[\])}>] ?| DOT | dot |\.)",
    )
    bracketed = (
        rf"(?<![\w.])[\w.+-]{{1,64}}{at}[A-Za-z0-9-]{{1,63}}(?:{dot}[A-Za-z0-9-]{{2,63}}){{1,4}}"
    )
    in_words = (
        r"(?<![\w.])[\w.+-]{1,64}(?: dot [\w+-]{1,40}){0,3} at [A-Za-z0-9-]{1,63}"
        r"(?: dot [A-Za-z0-9-]{2,63}){1,4}(?![A-Za-z0-9])"
    )
    spaced = r"(?<![\w.])[\w.+-]{1,64} @ [A-Za-z0-9-]{1,63} ?\. ?[A-Za-z]{2,24}(?![A-Za-z0-9(])"
    address = Where(lead=64, reach=420)
    return (
        rule("email", "@ ＠", plain, cjk, check=_email, where=address),
        rule("email", "mailto:", quoted, check=_email, where=Where(lead=0, reach=1)),
        rule(
            "email",
            "%40 &#64; &#x40; &commat;",
            encoded,
            check=_email,
            folded=True,
            where=address,
        ),
        rule("email", _AT_HINTS, bracketed, check=_obfuscated, where=address),
        rule(
            "email",
            (" dot ",),
            in_words,
            check=_obfuscated,
            folded=True,
            where=Where(lead=300, reach=420),
        ),
        rule("email", (" @ ",), spaced, check=_obfuscated, where=address),
    )


# What stands for the sign in an address that is written so that programs do not find it.
_AT_HINTS = (
    "_at_",
    " AT ",
    *(
        f"{bracket}{space}{sign}"
        for bracket in "[({<"
        for space in ("", " ")
        for sign in ("at", "aT", "At", "AT", "@", "ät")
    ),
)


_RESERVED_DOMAINS = words(
    """example.com example.org example.net domain.com email.com yourdomain.com test.com
    company.com yourcompany.com mydomain.com site.com website.com"""
)
_NOT_TOP_LEVEL = words(
    """example test invalid localhost local internal lan png jpg jpeg gif svg webp ico css js ts
    jsx tsx py rb go rs java cpp json yaml yml xml html htm md txt log conf cfg sh lock toml
    service socket timer target mount shape mean sum max min dtype size copy item map filter
    length push value values get set"""
)
_ROLE_LOCALS = words(
    """noreply no-reply donotreply do-not-reply git user username example your_email youremail
    your.email your-email your_name yourname name email me you someone somebody foo bar xxx
    root myemail my_email user1 first.last firstname.lastname"""
)


def _email(match: Match) -> bool:
    value = re.sub(r"%40|&#64;|&#x40;|&commat;|＠", "@", value_of(match), flags=re.IGNORECASE)
    local, _, domain = value.lower().rpartition("@")
    return _is_mailbox(local, domain)


def _is_mailbox(local: str, domain: str) -> bool:
    labels = domain.strip(".").split(".")
    return (
        domain not in _RESERVED_DOMAINS
        and labels[-1] not in _NOT_TOP_LEVEL
        and local.strip(".") not in _ROLE_LOCALS
        and "your" not in local
        and any(c.isalnum() for c in local)
    )


_NO_LOCALS = words(
    """look looking meet me us them it arrive arrived stay work works working is are was be
    available here there live lives here's all not and or the a an in on out up found find go
    sold stop stopped start started end ended aim only even index array"""
)


def _obfuscated(match: Match) -> bool:
    value = re.sub(
        r" dot |\s?[\[({<]\s?(?:dot|punkt|point|\.)\s?[\])}>]\s?", ".", match[0], flags=re.I
    )
    parts = re.split(r"\s?[\[({<]\s?(?:at|@|ät)\s?[\])}>]\s?|_at_| at | @ ", value, flags=re.I)
    if len(parts) != 2:
        return False
    local, domain = parts[0].lower(), parts[1].lower().replace(" ", "")
    domain = domain.rstrip(".")
    labels = domain.split(".")
    return (
        len(labels) >= 2
        and labels[-1].isalpha()
        and local not in _NO_LOCALS
        and _is_mailbox(local, domain)
    )


def _account_rules() -> tuple[Rule, ...]:
    card = (
        r"(?<![\w.-])\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,7}(?![\w-]|\.\d)",
        r"(?<![\w.-])3[47]\d{2}[ -]\d{6}[ -]\d{5}(?![\w-]|\.\d)",
        r"(?<![\w.-])3[068]\d{2}[ -]?\d{6}[ -]?\d{4}(?![\w-]|\.\d)",
    )
    iban = r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,4})?\b"
    small_iban = r"\b[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]{4}){3,7}(?:[ -]?[A-Za-z0-9]{1,4})?\b"
    bank = (
        r"\b(?:routing|aba|rtn)\b[^\d\n]{0,24}(?P<value>\d{9})(?!\d)",
        r"\b(?:bank )?(?:account|acct|a/c|konto|compte|cuenta)\b[ .]{0,2}(?:number|no|nr|nummer"
        r"|num|n°|#)?"
        r"[.\s]{0,2}(?:is|ist|es|est|:|=|#)?\s{0,2}(?P<value>\d[\d -]{4,20}\d)(?![\w.]\w)",
        r"\bsort[ -]?code\b\W{0,4}(?:is )?(?P<value>\d{2}-?\d{2}-?\d{2})(?!\d)",
        r"\b(?:bsb)\b\W{0,4}(?:is )?(?P<value>\d{3}-?\d{3})(?!\d)",
        r"\bclabe\b\W{0,4}(?:es )?(?P<value>\d{18})(?!\d)",
    )
    codes = (
        r"\b(?:swift|bic)\b(?:[ /-](?:bic|code))?\W{0,4}(?:is "
        r")?(?P<value>[A-Z]{6}[A-Z0-9]{2}(?:[A-Z0-9]{3})?)\b",
        r"\bifsc\b(?: code)?\W{0,4}(?:is )?(?P<value>[A-Z]{4}0[A-Z0-9]{6})\b",
    )
    names = "routing aba rtn account acct a/c konto compte cuenta sort bsb clabe"
    wallet = (
        r"(?<![A-Za-z0-9/])[13][1-9A-HJ-NP-Za-km-z]{25,34}(?![A-Za-z0-9])",
        r"(?<![A-Za-z0-9/])bc1[ac-hj-np-z02-9]{38,60}(?![A-Za-z0-9])",
        r"(?<![A-Za-z0-9/])0x[0-9a-fA-F]{40}(?![A-Za-z0-9])",
    )
    return (
        number_rule("credit_card", *card, check=_card),
        number_rule("iban", iban, check=_iban),
        rule("iban", "iban", small_iban, check=_iban, folded=True, where=NAMED_NUMBER),
        rule("bank_account", names, *bank, check=_bank, folded=True, where=NAMED_NUMBER),
        rule(
            "bank_account",
            "swift bic ifsc",
            *codes,
            check=_bank,
            folded=True,
            where=Where(lead=0, reach=1),
        ),
        rule("crypto_address", "", *wallet, check=_wallet, where=Where("runs", run=26)),
    )


_ISSUERS = re.compile(r"4|5[1-5]|2[2-7]|3[47]|30[0-5]|3[689]|35[2-8]|6(?:011|5|4[4-9]|2)")


def _card(match: Match) -> bool:
    from stdnum import luhn

    digits = digits_of(match[0])
    return (
        bool(_ISSUERS.match(digits))
        and 13 <= len(digits) <= 19
        and len(set(digits)) > 3
        and bool(luhn.is_valid(digits))
    )


def _iban(match: Match) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(match[0]))


def _bank(match: Match) -> bool:
    value, text = value_of(match), match[0].lower()
    if re.match(r"routing|aba|rtn", text):
        from stdnum.us import rtn

        return bool(rtn.is_valid(value))
    if re.match(r"swift|bic", text):
        from stdnum import bic

        return value.isupper() and bool(bic.is_valid(value))
    digits = digits_of(value)
    return len(digits) >= 6 and len(set(digits)) > 2 and digits not in "01234567890123456789"


_WALLET_WORDS = re.compile(r"wallet|send|address|btc|eth|bitcoin|ethereum|usdt|donat|pay")


def _wallet(match: Match) -> bool:
    value = match[0]
    if value.startswith(("0x", "bc1")):
        return bool(_WALLET_WORDS.search(before(match))) and "contract" not in before(match)
    payload = base58check(value)
    return payload is not None and len(payload) == 21 and payload[0] in (0, 5)


def _network_rules() -> tuple[Rule, ...]:
    ipv4 = r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"
    ipv6 = r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{1,4}(?![\w:.])"
    mac = (
        r"(?<![\w:-])[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w:-])",
        r"(?<![\w.])[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}(?![\w.])",
    )
    profile = (
        r"linkedin\.com/in/[\w%-]{3,100}",
        r"facebook\.com/profile\.php\?id=\d{6,20}",
        r"(?:wa\.me|api\.whatsapp\.com/send\?phone=)/?\+?\d{8,15}",
        r"\bskype:[\w.,-]{6,32}\?(?:call|chat)",
    )
    return (
        number_rule("ip_address", ipv4, check=_ipv4, shapes=".9.|.99.|.999."),
        rule("ip_address", "", ipv6, check=_ipv6, gate=r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:"),
        rule("mac_address", "", mac[0], check=_mac, gate=r":[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}:"),
        rule("mac_address", "", mac[0], check=_mac, gate=r"-[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}-"),
        rule("mac_address", "", mac[1], check=_mac, gate=r"\.[0-9A-Fa-f]{4}\."),
        rule(
            "profile_url",
            "linkedin.com/in/ facebook.com/profile wa.me api.whatsapp skype:",
            *profile,
            folded=True,
        ),
    )


def _ipv4(match: Match) -> bool:
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    if re.search(r"v(?:ersion)?\.? ?$|release ?$", before(match, 12)):
        return False
    # Four small numbers are more often a version or a section; public resolvers belong to no person
    # address.
    return (
        address.is_global
        and int(match[0].split(".")[0]) > 9
        and match[0] not in ("8.8.8.8", "8.8.4.4", "1.1.1.1")
    )


def _ipv6(match: Match) -> bool:
    value = match[0]
    if value.count("::") > 1 or sum(map(bool, value.split(":"))) < 4:
        return False
    try:
        address = ipaddress.IPv6Address(value)
    except ValueError:
        return False
    return address.is_global and not value.lower().startswith(
        ("2001:4860:4860", "2606:4700:4700", "2001:db8")
    )


_SAMPLE_MACS = frozenset(
    ("001122334455", "aabbccddeeff", "112233445566", "deadbeefcafe", "0123456789ab", "123456789abc")
)


def _mac(match: Match) -> bool:
    digits = re.sub(r"[:.-]", "", match[0]).lower()
    return len(set(digits)) > 3 and digits not in _SAMPLE_MACS and not digits.startswith("000000")
