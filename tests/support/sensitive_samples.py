"""Sample texts with secrets and personal data, and look-alikes; and the table of what the scanner
finds.

Every value is made at run time by a seeded generator, so that no scanner of this repository takes
it for a real one. A third of the samples, chosen by the hash of their names, is not used while
rules are written; the table counts it apart. Run as a program it prints docs/scanner.md."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hubkit.sensitive_data import KINDS, PERSONAL, SECRETS, scan_text
from hubkit.sensitive_data.phones import REGIONS

Group = Literal["secret", "personal", "look-alike"]
ALNUM = string.ascii_letters + string.digits
LOWER = string.ascii_lowercase + string.digits
UPPER = string.ascii_uppercase + string.digits
HEX = "0123456789abcdef"
WEB = ALNUM + "-_"
BASE64 = ALNUM + "+/"


@dataclass(frozen=True, slots=True)
class Sample:
    """A text, and the value in it that is to be found (none in a look-alike)."""

    group: Group
    name: str
    text: str
    value: str = ""

    @property
    def held_out(self) -> bool:
        """Whether the rules were written without it."""
        return hashlib.sha256(self.name.encode()).digest()[0] % 3 == 0

    @property
    def is_right(self) -> bool:
        """Whether the scanner finds the value, or nothing in a look-alike."""
        if self.group == "look-alike":
            return not scan_text(self.text)
        kinds = SECRETS if self.group == "secret" else PERSONAL
        start = self.text.index(self.value)
        end = start + len(self.value)
        return any(f.start < end and f.end > start for f in scan_text(self.text, kinds))


class Maker:
    """Makes values out of one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, alphabet: str, length: int) -> str:
        """Random characters, a digit and a letter among them where `alphabet` has both."""
        while True:
            value = "".join(self._random.choices(alphabet, k=length))
            if length < 8 or len(set(value)) > 4:
                return value

    def digits(self, length: int) -> str:
        """Digits that do not begin with 0."""
        return self("123456789", 1) + self(string.digits, length - 1)

    def pick(self, *values: str) -> str:
        """One of `values`."""
        return self._random.choice(values)

    def uuid(self) -> str:
        """A random UUID."""
        return "-".join(self(HEX, n) for n in (8, 4, 4, 4, 12))

    def luhn(self, prefix: str, length: int) -> str:
        """A number with a Luhn check digit."""
        from stdnum import luhn

        body = prefix + self(string.digits, length - 1 - len(prefix))
        return body + luhn.calc_check_digit(body)

    def valid(self, module: str, candidate: Callable[[], str]) -> str:
        """The first candidate that stdnum's `module` accepts."""
        from importlib import import_module

        check = import_module(f"stdnum.{module}").is_valid
        return next(value for value in iter(candidate, None) if check(value))


# name → (text with {} for the value, value). Prefixes are split so that the source holds no token.
def _secret_values(m: Maker) -> dict[str, tuple[str, str]]:
    jwt = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": m.digits(10), "iat": 1700000000})
    )
    pem = "\n".join(m(BASE64, 64) for _ in range(6))
    begin, end = "-----BEGIN {} PRIVATE " + "KEY-----", "-----END {} PRIVATE " + "KEY-----"
    password = m.pick("Tr0ub4dor", "correctHorse7", "zK9!fw") + m(LOWER, 4) + "7x"
    return {
        "aws access key id": (
            "aws configure asked, I typed {} and it worked",
            "AK" + "IA" + m(UPPER, 16),
        ),
        "aws temporary key id": ("export AWS_ACCESS_KEY_ID={}", "AS" + "IA" + m(UPPER, 16)),
        "aws secret key": ("aws_secret_access_key = {}", m(BASE64, 40)),
        "aws secret in python": ("boto3.client('s3', aws_secret_access_key='{}')", m(BASE64, 40)),
        "aws session token": ("export AWS_SESSION_TOKEN={}", "IQoJb3JpZ2luX2Vj" + m(BASE64, 180)),
        "google api key": ("maps.js?key={}&libraries=places", "AI" + "za" + m(WEB, 35)),
        "google oauth secret": ('"client_secret":"{}"', "GOC" + "SPX-" + m(WEB, 28)),
        "google access token": ("curl -H 'Authorization: Bearer {}'", "ya" + "29." + m(WEB, 90)),
        "google service account": (
            '{"type": "service_account", "private_key": "{}"}',
            begin.format("RSA").replace("RSA ", "")
            + "\\n"
            + m(BASE64, 200)
            + "\\n"
            + end.format("RSA").replace("RSA ", ""),
        ),
        "firebase server key": (
            "Authorization: key={}",
            "AA" + "AA" + m(WEB, 7) + ":APA91b" + m(WEB, 134),
        ),
        "azure storage": (
            "DefaultEndpointsProtocol=https;AccountName=st1;Account"
            + "Key={};EndpointSuffix=core.windows.net",
            m(BASE64, 86) + "==",
        ),
        "azure client secret": ("AZURE_CLIENT_SECRET={}", m(ALNUM, 3) + "8Q~" + m(ALNUM, 34)),
        "azure sas": (
            "https://st1.blob.core.windows.net/c?sv=2022-11-02&sp=r&sig={}",
            m(BASE64, 43).replace("+", "%2B") + "%3D",
        ),
        "azure service bus": (
            "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccess"
            + "Key={}",
            m(BASE64, 43) + "=",
        ),
        "github classic": ("git clone with {} please", "gh" + "p_" + m(ALNUM, 36)),
        "github oauth": ("token {}", "gh" + "o_" + m(ALNUM, 36)),
        "github app": ("GITHUB_TOKEN: {}", "gh" + "s_" + m(ALNUM, 36)),
        "github fine-grained": ("use {}", "github" + "_pat_" + m(ALNUM, 22) + "_" + m(ALNUM, 59)),
        "github in remote url": (
            "git remote add o https://x-access-token:{}@github.com/a/b.git",
            "gh" + "s_" + m(ALNUM, 36),
        ),
        "gitlab personal": ("PRIVATE-TOKEN: {}", "gl" + "pat-" + m(WEB, 20)),
        "gitlab runner": ("gitlab-runner register -t {}", "gl" + "rt-" + m(WEB, 20)),
        "slack bot": (
            "SLACK_BOT_TOKEN={}",
            "xo" + "xb-" + m.digits(12) + "-" + m.digits(12) + "-" + m(ALNUM, 24),
        ),
        "slack user": (
            "{} is my token",
            "xo"
            + "xp-"
            + m.digits(12)
            + "-"
            + m.digits(12)
            + "-"
            + m.digits(12)
            + "-"
            + m(HEX, 32),
        ),
        "slack app": ("{}", "xa" + "pp-1-A" + m(UPPER, 10) + "-" + m.digits(13) + "-" + m(HEX, 64)),
        "slack webhook": (
            "curl https://{}",
            "hooks.sl"
            + "ack.com/services/T"
            + m(UPPER, 8)
            + "/B"
            + m(UPPER, 8)
            + "/"
            + m(ALNUM, 24),
        ),
        "discord webhook": (
            "POST https://{}",
            "discord" + ".com/api/webhooks/" + m.digits(18) + "/" + m(WEB, 68),
        ),
        "discord bot": (
            "client.run('{}')",
            "M" + m(ALNUM, 25) + "." + m(WEB, 6) + "." + m(WEB, 38),
        ),
        "stripe live": ("stripe.api_key = '{}'", "sk" + "_live_" + m(ALNUM, 24)),
        "stripe test": ("stripe.api_key = '{}'", "sk" + "_test_" + m(ALNUM, 24)),
        "stripe restricted": ("STRIPE={}", "rk" + "_live_" + m(ALNUM, 24)),
        "stripe webhook secret": ("endpoint_secret = '{}'", "wh" + "sec_" + m(ALNUM, 32)),
        "openai": ("openai.api_key = '{}'", "s" + "k-" + m(ALNUM, 48)),
        "openai project": ("OPENAI_API_KEY={}", "s" + "k-proj-" + m(WEB, 120)),
        "openrouter": ("key is {}", "s" + "k-or-v1-" + m(HEX, 64)),
        "anthropic": ("ANTHROPIC_API_KEY={}", "s" + "k-ant-api03-" + m(WEB, 93) + "AA"),
        "hugging face": ("login(token='{}')", "h" + "f_" + m(ALNUM, 34)),
        "groq": ("GROQ_API_KEY={}", "gs" + "k_" + m(ALNUM, 52)),
        "replicate": ("REPLICATE_API_TOKEN={}", "r" + "8_" + m(ALNUM, 37)),
        "nvidia": ("{}", "nv" + "api-" + m(WEB, 64)),
        "perplexity": ("{} does not work", "pp" + "lx-" + m(ALNUM, 48)),
        "langsmith": ("{}", "ls" + "v2_pt_" + m(HEX, 32) + "_" + m(HEX, 10)),
        "npm": ("//registry.npmjs.org/:_authToken={}", "np" + "m_" + m(ALNUM, 36)),
        "npm alone": ("my token {} expired", "np" + "m_" + m(ALNUM, 36)),
        "pypi": ("password = {}", "py" + "pi-AgEIcHlwaS5vcmc" + m(WEB, 140)),
        "docker": ("docker login -u me -p {}", "dckr" + "_pat_" + m(WEB, 27)),
        "digitalocean": ("DO={}", "do" + "p_v1_" + m(HEX, 64)),
        "databricks": ("token {}", "da" + "pi" + m(HEX, 32)),
        "grafana": ("{}", "gl" + "sa_" + m(ALNUM, 32) + "_" + m(HEX, 8)),
        "vault": ("VAULT_TOKEN={}", "hv" + "s." + m(WEB, 90)),
        "terraform cloud": ("credentials {}", m(ALNUM, 14) + ".atla" + "sv1." + m(WEB, 64)),
        "linear": ("{}", "li" + "n_api_" + m(ALNUM, 40)),
        "notion": ("NOTION={}", "nt" + "n_" + m(ALNUM, 46)),
        "airtable": ("{}", "pa" + "t" + m(ALNUM, 14) + "." + m(HEX, 64)),
        "shopify": ("X-Shopify-Access-Token: {}", "sh" + "pat_" + m(HEX, 32)),
        "square": ("{}", "sq" + "0atp-" + m(WEB, 22)),
        "twilio": ("auth {}", "S" + "K" + m(HEX, 32)),
        "sendgrid": ("SENDGRID={}", "S" + "G." + m(WEB, 22) + "." + m(WEB, 43)),
        "mailgun": ("api key {}", "ke" + "y-" + m(HEX, 32)),
        "mailchimp": ("{}", m(HEX, 32) + "-us" + "14"),
        "brevo": ("{}", "xkey" + "sib-" + m(HEX, 64) + "-" + m(ALNUM, 16)),
        "postman": ("{}", "PM" + "AK-" + m(HEX, 24) + "-" + m(HEX, 34)),
        "new relic": ("{}", "NR" + "AK-" + m(UPPER, 27)),
        "datadog": ("DD_API_KEY={}", m(HEX, 32)),
        "sentry": ("auth.token={}", "sntr" + "ys_" + m(BASE64, 120)),
        "cloudflare": ("CLOUDFLARE_API_TOKEN={}", m(WEB, 40)),
        "heroku": ("HEROKU_API_KEY={}", m.uuid()),
        "telegram": ("bot = Bot('{}')", m.digits(10) + ":AA" + m(WEB, 33)),
        "facebook": ("access_token={}", "EA" + "AC" + m(ALNUM, 160)),
        "twitter bearer": ("{}", "A" * 22 + m(ALNUM, 80)),
        "dropbox": ("{}", "s" + "l." + m(WEB, 136)),
        "atlassian": ("{}", "ATA" + "TT3xFfGF0" + m(WEB, 180)),
        "rubygems": ("{}", "ruby" + "gems_" + m(HEX, 48)),
        "tailscale": (
            "tailscale up --authkey {}",
            "ts" + "key-auth-" + m(ALNUM, 17) + "-" + m(ALNUM, 32),
        ),
        "pulumi": ("{}", "pu" + "l-" + m(HEX, 40)),
        "figma": ("{}", "fi" + "gd_" + m(WEB, 40)),
        "alibaba": ("AccessKeyId: {}", "LT" + "AI" + m(ALNUM, 20)),
        "web token": ("Cookie says {} now", jwt + "." + m(WEB, 43)),
        "rsa private key": ("{}", begin.format("RSA") + "\n" + pem + "\n" + end.format("RSA")),
        "openssh private key": (
            "here:\n{}\nthanks",
            begin.format("OPENSSH") + "\n" + pem + "\n" + end.format("OPENSSH"),
        ),
        "ec private key": ("{}", begin.format("EC") + "\n" + pem[:130] + "\n" + end.format("EC")),
        "pgp private key": (
            "{}",
            begin.format("PGP").replace("KEY--", "KEY BLOCK--")
            + "\n\n"
            + pem
            + "\n=abcd\n"
            + end.format("PGP").replace("KEY--", "KEY BLOCK--"),
        ),
        "putty key": (
            "{}",
            "PuTTY-User-Key-"
            + "File-3: ssh-ed25519\nEncryption: none\nPrivate-Lines: 1\n"
            + m(BASE64, 48),
        ),
        "age key": ("{}", "AGE-SECRET-" + "KEY-1" + m(UPPER, 58)),
        "postgres url": ("DATABASE_URL=postgres://app:{}@db.prod.internal:5432/app", m(ALNUM, 12)),
        "mongodb url": ("mongodb+srv://root:{}@cluster0.ab1cd.mongodb.net/", m(ALNUM, 14)),
        "redis url": ("redis://:{}@10.0.0.5:6379/0", m(ALNUM, 16)),
        "basic auth url": ("wget https://jane:{}@files.acme.io/x", m(ALNUM, 10)),
        "ado connection string": (
            "Server=tcp:sql1,1433;Initial Catalog=crm;User ID=sa;Password={};Encrypt=True",
            m(ALNUM, 10) + "!7aB",
        ),
        "jdbc url": ("jdbc:mysql://db1/crm?user=crm&password={}", m(ALNUM, 12)),
        "basic auth header": (
            "Authorization: Basic {}",
            base64.b64encode(f"jane:{password}".encode()).decode(),
        ),
        "bearer header": ("-H 'Authorization: Bearer {}'", m(ALNUM, 40)),
        "netrc": ("machine git.acme.io login jane password {}", m(ALNUM, 12)),
        "pgpass": ("db.acme.io:5432:crm:jane:{}", m(ALNUM, 12)),
        "curl user": ("curl -u jane:{} https://api.acme.io/v1", m(ALNUM, 12)),
        "env password": ("DB_PASSWORD={}", m(ALNUM, 12)),
        "yaml password": ('  password: "{}"', m(ALNUM, 12)),
        "said password": ("my wifi password is {} if you come over", password),
        "german password": ("Mein Passwort ist {}, bitte geheim halten", password),
        "chinese password": ("我的密码是：{}，别告诉别人", password),
        "generic api key": ('api_key = "{}"', m(ALNUM, 32)),
        "json secret": ('{"clientSecret": "{}"}', m(ALNUM, 40)),
        "django secret": ("SECRET_KEY = '{}'", m(ALNUM + "!@#%^*-=+", 50)),
        "laravel app key": ("APP_KEY=base64:{}", m(BASE64, 43) + "="),
        "bcrypt hash": ("admin:{}", "$2" + "y$10$" + m(ALNUM + "./", 53)),
        "shadow hash": (
            "root:{}:19000:0:99999:7:::",
            "$" + "6$" + m(ALNUM, 16) + "$" + m(ALNUM + "./", 86),
        ),
        "totp secret": (
            "otp" + "auth://totp/ACME:jane?secret={}&issuer=ACME",
            m(string.ascii_uppercase + "234567", 32),
        ),
        "wallet phrase": (
            "my seed phrase: {}",
            " ".join(
                m.pick("rubber", "cliff", "ocean", "planet", "mouse", "ladder", "vivid", "crisp")
                for _ in range(12)
            ),
        ),
        "ethereum key": ("private_key = 0x{}", m(HEX, 64)),
        "wi-fi code": ("WI" + "FI:T:WPA;S:home;P:{};;", m(ALNUM, 12)),
    }


def _personal_values(m: Maker) -> dict[str, tuple[str, str]]:
    first, last = m.pick("jane", "omar", "li", "petra"), m.pick("holt", "okafor", "wendt", "silva")
    domain = m.pick("uni-bergen", "hollerith", "brightwater") + "."
    date6 = m.pick("850412", "910730", "780101")
    d = m.digits
    return {
        "e-mail": ("write to {} please", f"{first}.{last}@{domain}edu"),
        "e-mail with tag": ("{}", f"{first}+news@{domain}com"),
        "e-mail in brackets": ("Jane <{}>", f"{first}_{last}@mail.{domain}co.uk"),
        "e-mail in japanese": ("メールは{}です", f"{first}@{domain}co.jp"),
        "e-mail in chinese": ("我的邮箱是{}，谢谢", d(9) + "@qq" + ".com"),
        "e-mail with umlaut": ("{}", f"{first}@müller-{last}.de"),
        "e-mail [at]": ("{}", f"{first} [at] {domain}org"),
        "e-mail (at) (dot)": ("mail {}", f"{first}(at){domain[:-1]}(dot)org"),
        "e-mail spoken": ("reach me: {}", f"{first} dot {last} at {domain[:-1]} dot com"),
        "e-mail capital AT": ("{}", f"{first} AT {domain[:-1]} DOT net"),
        "e-mail escaped": ("?to={}", f"{first}%40{domain}com"),
        "e-mail entity": ("{}", f"{first}&#64;{domain}com"),
        "phone international": ("call {}", "+49 30 " + "9018" + m("123456789", 2)),
        "phone e.164": ("{}", "+1415" + "736" + m("123456789", 4)),
        "phone us": ("Call me at {} tonight", "(415) 736-" + m("123456789", 4)),
        "phone us dotted": ("{}", "415.736." + m("123456789", 4)),
        "phone us plain": ("my phone number is {}", "415736" + m("123456789", 4)),
        "phone uk": (
            "My number is {}, ring me after six in the evening please",
            "020 7946 " + m("123456789", 4),
        ),
        "phone uk mobile": ("text me on {} when you get there", "07700 " + m("123456789", 6)),
        "phone germany": (
            "Ruf mich bitte an, meine Nummer ist {}, am besten abends",
            "0176 " + "4" + m("123456789", 7),
        ),
        "phone germany slash": (
            "Unser Büro erreichen Sie unter der folgenden Nummer: {}",
            "030/" + "9018" + m("123456789", 4),
        ),
        "phone france": (
            "Tu peux me joindre au {} demain matin avant le travail",
            "06 12 34 " + m("56789", 1) + "6 78",
        ),
        "phone spain": (
            "Mi teléfono es el {} por si quieres llamarme mañana",
            "612 34 " + "5" + m("123456789", 1) + " 78",
        ),
        "phone italy": (
            "Il mio numero di telefono è {} e sono a casa dopo le sei",
            "347 " + m("123456789", 7),
        ),
        "phone brazil": (
            "Me liga amanhã no telefone {} para a gente conversar",
            "(11) 9" + m("6789", 1) + "765-" + m("123456789", 4),
        ),
        "phone japan": (
            "私の電話番号は{}です。夜に電話してください。",
            "090-" + m("123456789", 4) + "-" + m("123456789", 4),
        ),
        "phone china": ("我的手机号是{}，有事打电话给我", "13" + m("56789", 1) + m("123456789", 8)),
        "phone korea": (
            "제 전화번호는 {} 입니다",
            "010-" + m("23456789", 4) + "-" + m("123456789", 4),
        ),
        "phone russia": (
            "мой телефон {} звони вечером",
            "8 (916) " + m("123456789", 3) + "-" + m("123456789", 2) + "-" + m("123456789", 2),
        ),
        "phone india": ("मेरा फोन नंबर {} है", "98" + m("123456789", 3) + " " + m("123456789", 5)),
        "card visa": (
            "card {} exp 04/27",
            (lambda v: " ".join(v[i : i + 4] for i in range(0, 16, 4)))(m.luhn("4539", 16)),
        ),
        "card mastercard": ("{}", m.luhn("5412", 16)),
        "card amex": ("amex {}", (lambda v: f"{v[:4]} {v[4:10]} {v[10:]}")(m.luhn("3782", 15))),
        "card discover": (
            "{}",
            (lambda v: "-".join(v[i : i + 4] for i in range(0, 16, 4)))(m.luhn("6011", 16)),
        ),
        "iban germany": ("überweise auf {}", _iban(m, "DE", 18, True)),
        "iban france": ("{}", _iban(m, "FR", 23, False)),
        "iban uk": ("{}", _iban(m, "GB", 18, True)),
        "routing and account": ("routing {} at the bank", m.valid("us.rtn", lambda: "0" + d(8))),
        "account number": ("my account number is {}", d(10)),
        "sort code": ("sort code {}", "20-" + d(2) + "-" + d(2)),
        "us social security": ("SSN {}", "536-90-" + d(4)),
        "us social security plain": ("my social security number is {}", "53690" + d(4)),
        "us taxpayer": (
            "ITIN {}",
            m.valid("us.itin", lambda: "9" + d(2) + "-" + m("789", 1) + d(1) + "-" + d(4)),
        ),
        "uk national insurance": ("NI number {}", "AB" + d(6) + "C"),
        "uk nhs": ("NHS number {}", m.valid("gb.nhs", lambda: d(3) + " " + d(3) + " " + d(4))),
        "canada sin": ("SIN: {}", m.valid("ca.sin", lambda: d(3) + "-" + d(3) + "-" + d(3))),
        "france nir": (
            "numéro de sécu {}",
            m.valid("fr.nir", lambda: "1" + "85" + "04" + "75" + d(3) + d(3) + d(2)),
        ),
        "italy codice fiscale": (
            "codice fiscale {}",
            m.valid("it.codicefiscale", lambda: "RSSMRA85T10A562" + m(string.ascii_uppercase, 1)),
        ),
        "spain dni": (
            "mi DNI es {}",
            m.valid("es.dni", lambda: d(8) + m(string.ascii_uppercase, 1)),
        ),
        "germany tax id": ("Steuer-ID {}", m.valid("de.idnr", lambda: d(11))),
        "netherlands bsn": ("BSN {}", m.valid("nl.bsn", lambda: d(9))),
        "sweden personnummer": ("{}", m.valid("se.personnummer", lambda: date6 + "-" + d(4))),
        "finland hetu": (
            "henkilötunnus {}",
            m.valid("fi.hetu", lambda: "131052-" + d(3) + m(UPPER, 1)),
        ),
        "poland pesel": ("PESEL {}", m.valid("pl.pesel", lambda: date6 + d(5))),
        "brazil cpf": (
            "CPF {}",
            m.valid("br.cpf", lambda: d(3) + "." + d(3) + "." + d(3) + "-" + d(2)),
        ),
        "china resident id": ("身份证号{}", m.valid("cn.ric", lambda: "11010119" + date6 + d(4))),
        "korea rrn": ("주민번호 {}", m.valid("kr.rrn", lambda: date6 + "-1" + d(6))),
        "india aadhaar": (
            "Aadhaar {}",
            m.valid("in_.aadhaar", lambda: m("23456789", 1) + d(3) + " " + d(4) + " " + d(4)),
        ),
        "india pan": ("my PAN is {}", "ABC" + "PK" + d(4) + "L"),
        "mexico curp": (
            "CURP {}",
            m.valid("mx.curp", lambda: "BOXW310820HNERXN" + m(ALNUM.upper(), 1) + d(1)),
        ),
        "argentina cuit": ("CUIT {}", m.valid("ar.cuit", lambda: "20-" + d(8) + "-" + d(1))),
        "turkey kimlik": ("TC Kimlik {}", m.valid("tr.tckimlik", lambda: d(11))),
        "australia tfn": ("TFN {}", m.valid("au.tfn", lambda: d(3) + " " + d(3) + " " + d(3))),
        "south africa id": (
            "ID number {}",
            m.valid("za.idnr", lambda: date6 + d(4) + "0" + "8" + d(1)),
        ),
        "passport": ("passport number {}", m("CHKLM", 1) + d(8)),
        "passport german": ("Reisepass Nr. {}", "C01X" + d(5)),
        "driving licence": ("my driver's license number is {}", m("ABDF", 1) + d(7)),
        "health insurance": ("health insurance number: {}", "A" + d(9)),
        "ip": ("logged in from {}", "93.184." + m("123456789", 2) + "." + m("123456789", 2)),
        "ipv6": ("from {}", "2a02:8109:" + ":".join(m(HEX, 4) for _ in range(6))),
        "mac": ("my phone's MAC is {}", ":".join(m(HEX, 2) for _ in range(6))),
        "imei": ("IMEI {}", m.luhn("35", 15)),
        "vin": ("VIN {}", "WBA" + m("ABCDEFGHJKLMNPRSTUVWXYZ0123456789", 5) + d(9)),
        "licence plate": ("my license plate is {}", "7" + m(string.ascii_uppercase, 3) + d(3)),
        "coordinates": ("I am at {} right now", "52.5" + d(3) + ", 13.4" + d(3)),
        "coordinates in a url": (
            "https://www.google.com/maps/{},17z",
            "@48.8" + d(4) + ",2.2" + d(4),
        ),
        "coordinates in degrees": ("{}", "48°51'" + d(2)[:1] + '4"N 2°17\'40"E'),
        "address us": ("ship it to {}", d(4) + " Willow Creek Road, Apt 4B, Austin, TX 78" + d(3)),
        "address us without town": ("I live at {} with my dog", d(3) + " Maple Street"),
        "address uk": ("{}", "14 Elm Grove, London SE15 " + d(1) + "DB"),
        "address germany": ("Ich wohne in der {}", "Lindenstraße 12, 50" + d(3) + " Köln"),
        "address france": ("j'habite {}", "24 rue des Lilas, 75011 Paris"),
        "address spain": ("vivo en {}", "Calle de Alcalá 48, 28014 Madrid"),
        "address italy": ("abito in {}", "Via Garibaldi 12, 20121 Milano"),
        "address netherlands": ("{}", "Prinsengracht 263, 1016 GV Amsterdam"),
        "address japan": ("住所は{}です", "東京都新宿区西新宿2-8-1"),
        "address china": ("我住在{}", "北京市朝阳区建国路88号"),
        "birth date": ("DOB: {}", "04/12/19" + d(2)),
        "birth date said": ("I was born on {} in Lagos", "March 3, 1987"),
        "birth date german": ("Geburtsdatum: {}", "12.04.1985"),
        "bitcoin address": ("{}", _bitcoin(m)),
        "ethereum address": ("send it to my wallet {}", "0x" + m(HEX, 40)),
        "profile": ("https://www.{}", "linkedin.com/in/" + first + "-" + last + "-" + m(HEX, 6)),
    }


def _iban(m: Maker, country: str, length: int, spaced: bool) -> str:
    from stdnum import iban

    bank = {"GB": "NWBK"}.get(country, "")
    while True:
        body = bank + m.digits(length - len(bank))
        value = country + iban.calc_check_digits(country + "00" + body) + body
        if iban.is_valid(value):
            return " ".join(value[i : i + 4] for i in range(0, len(value), 4)) if spaced else value


def _bitcoin(m: Maker) -> str:
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    payload = b"\0" + bytes(int(m(HEX, 2), 16) for _ in range(20))
    payload += hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4]
    number, text = int.from_bytes(payload, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        text = alphabet[rest] + text
    return "1" * (len(payload) - len(payload.lstrip(b"\0"))) + text


def _look_alikes(m: Maker) -> dict[str, str]:
    h, d = lambda n: m(HEX, n), m.digits
    return {
        "md5": f"md5sum: {h(32)}  file.iso",
        "sha1 commit": f"fixed in commit {h(40)}",
        "sha256": f"sha256:{h(64)}",
        "integrity": f'"integrity": "sha512-{m(BASE64, 86)}=="',
        "docker digest": f"FROM python@sha256:{h(64)}",
        "uuid": f"request id {m.uuid()}",
        "etag": f'ETag: "{h(32)}"',
        "session name": f"the cache key is user:{h(16)}",
        "base64 image": f"data:image/png;base64,iVBORw0KGgo{m(BASE64, 200)}",
        "public key": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{m(BASE64, 43)} jane",
        "certificate": "-----BEGIN CERTIFICATE-----\n"
        + m(BASE64, 64)
        + "\n-----END CERTIFICATE-----",
        "public pem": "-----BEGIN PUBLIC KEY-----\n" + m(BASE64, 64) + "\n-----END PUBLIC KEY-----",
        "pem placeholder": "-----BEGIN RSA PRIVATE "
        + "KEY-----\n...\n-----END RSA PRIVATE "
        + "KEY-----",
        "example aws key": "AK" + "IAIOSFODNN7EXAMPLE",
        "your key": "api_key = 'YOUR_API_KEY_GOES_HERE_1234'",
        "x key": "OPENAI_API_KEY=s" + "k-" + "x" * 48,
        "angle key": "token: <your-github-token-goes-here>",
        "shell variable": "export TOKEN=${GITHUB_TOKEN_FROM_CI_1}",
        "environment read": "api_key = os.environ['OPENAI_API_KEY_2']",
        "javascript environment": "const secretKey = process.env.STRIPE_SECRET_KEY1;",
        "github secrets": "token: ${{ secrets.GITHUB_TOKEN }}",
        "stripe publishable": "pk" + "_test_" + m(ALNUM, 24),
        "csrf token": f"csrf_token = '{m(ALNUM, 32)}'",
        "page token": f"nextPageToken: {m(ALNUM, 24)}",
        "special token": "eos_token = '<|endoftext|>', pad_token_id=50256",
        "primary key": "primary_key = 'customer_id_2_account_id_7'",
        "password field": "password: str = Field(min_length=8)",
        "password prompt": "password = getpass.getpass('Password: ')",
        "password rule": "Your password must have 8 characters and 1 digit",
        "password of docs": "postgres://user:password@localhost:5432/db",
        "password template": "https://${USER}:${PASS}@host/x",
        "password label": '<input type="password" name="password" id="password1">',
        "password test": 'self.assertEqual(user.password, "password123")',
        "weak password": "the password is weak, please choose another one",
        "url with port": "http://localhost:8080/@angular/core",
        "scoped package": "npm install @types/node@18.2.1 lodash@latest",
        "decorator": "@pytest.mark.parametrize and @app.route('/x')",
        "git remote": "git clone git@github.com:acme/tools.git",
        "reserved mail": "user@example.com, jane@example.org",
        "retina image": "logo@2x.png and icon@3x.svg",
        "systemd unit": "systemctl restart getty@tty1.service",
        "no reply": "From: noreply@github.com",
        "matrix product": "y = x@w.T + b and a@b.shape",
        "at sign times": "5 apples @ 3.50 each",
        "look at": "take a look at python dot org and at the dot product",
        "film number": "call 555-0199 or (212) 555-0123",
        "iso date": "2021-10-11 12:30:45 and 2024/01/15",
        "german date": "am 11.10.2021 um 12:30 Uhr treffen wir uns alle im Park",
        "year range": "from 1998-2004 and 2010 - 2014",
        "epoch": f"timestamp 17{d(8)} and 17{d(11)}",
        "isbn": "ISBN 978-3-16-148410-0",
        "issn": "ISSN 2049-3630",
        "doi": "doi:10.1000/182.4571230",
        "arxiv": "arXiv:2310.07301v2",
        "order number": f"order #{d(3)}-{d(7)}-{d(7)}",
        "tracking number": f"tracking number 1Z{m(UPPER, 16)}",
        "invoice": f"Invoice 2023-{d(6)}",
        "part number": f"part no. {d(3)}-{d(4)}",
        "serial number": f"serial {d(4)}-{d(4)}-{d(4)}-{d(4)}",
        "versions": "Version 1.2.3.4 and v10.15.7.21",
        "section numbers": "see 10.2.3.1 and 3.4.5.6",
        "private ip": "192.168.1.17, 10.0.0.5, 172.16.3.4, 127.0.0.1",
        "documentation ip": "192.0.2.10 and 203.0.113.7 and 198.51.100.9",
        "resolvers": "8.8.8.8 and 1.1.1.1",
        "documentation ipv6": "2001:db8::1 and ::1 and fe80::1",
        "c++ scope": "std::vector<std::string> a; foo::bar::baz::qux(1);",
        "time": "at 12:34:56 and 01:02:03:04",
        "sample mac": "00:11:22:33:44:55 and ff:ff:ff:ff:ff:ff",
        "pi": "3.14159265358979 and 2.718281828459045",
        "float vector": "[0.1234, 0.5678, -0.9012, 12.3456, 45.6789]",
        "point": "the points (1.5, 2.5) and (3.25, 4.75)",
        "large number": "about 1,234,567,890 people and 299792458 m/s",
        "digits of a sum": "12345678 + 87654321 = 99999999",
        "not luhn": "1234 5678 9012 3456 and 4539 1488 0343 6468",
        "hex colours": "#a1b2c3 #ffeedd 0xDEADBEEF",
        "long identifier": "get_user_access_token_from_session_storage_v2()",
        "package name": "sk-learn, hf_hub_download, npm_package_config_port, ghp_import",
        "class path": "com.acme.security.oauth2.TokenEndpointAuthenticationFilter",
        "protein": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKW"
        "KRQ",
        "dna": "ACGTACGTTAGCCGATCGATTACGATCGATCGGCTAAT",
        "famous address": "Sherlock Holmes of 221B Baker Street",
        "place": "turn left on Main Street and 5th Avenue",
        "historic birth": "Einstein was born on 14 March 1879 in Ulm",
        "token count": "max_tokens: 4096, total_tokens=128000, token_type_ids",
        "price list": "12.99 24.99 36.99 48.99 60.99",
        "score": "they won 3-2, 6-4, 7-5 and 21-19",
        "phone model": "the Nokia 3310 and the Samsung SM-G998B",
        "zip codes": "90210, 10001-1234 and 60614",
        "account in docs": "arn:aws:iam::123456789012:role/Admin",
        "bible": "John 3:16, Psalm 119:105 and Genesis 1:1-2:3",
        "latex": r"\frac{1}{2} \cite{smith2020attention} \label{eq:12}",
        "regex": r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Z]{2,}$",
        "base64 words": "SGVsbG8sIHdvcmxkISBUaGlzIGlzIGp1c3QgYSB0ZXN0Lg==",
        "url slug": "https://medium.com/@user/how-to-train-your-model-3f2a1b9c8d7e",
        "youtube": "https://www.youtube.com/watch?v=dQw4w9WgXcQ",
        "analytics id": "UA-12345678-1 and G-AB12CD34EF and GTM-ABC1234",
        "css": "grid-template-columns: repeat(auto-fit, minmax(200px, 1fr));",
        "conda hash": f"numpy-1.26.4-py311h{h(7)}_0",
        "licence keys in prose": "license key: enter the 25-character key from your box",
    }


def samples(seed: int = 0) -> list[Sample]:
    """Every sample, made from `seed`."""
    maker = Maker(seed)
    made: list[Sample] = []
    groups: tuple[tuple[Group, dict[str, tuple[str, str]]], ...] = (
        ("secret", _secret_values(maker)),
        ("personal", _personal_values(maker)),
    )
    for group, values in groups:
        for name, (text, value) in values.items():
            made.append(Sample(group, name, text.replace("{}", value), value))
    made += [Sample("look-alike", name, text) for name, text in _look_alikes(maker).items()]
    return made


def table(seeds: int = 5) -> str:
    """docs/scanner.md: what is found of each group, used for tuning and held out, over `seeds`."""
    lines = [
        "# What the scanner finds",
        "",
        "Written by `make scanner`. Every sample is made by "
        "`tests/support/sensitive_samples.py`, "
        f"{seeds} times with other random values. A third of the samples, chosen by the hash of "
        "their names, was not used while the rules were written. "
        "Samples and rules have one author, so expect less on values that look otherwise.",
        "",
        "| samples | formats | used for tuning | held out | all |",
        "| --- | --- | --- | --- | --- |",
    ]
    every = [sample for seed in range(seeds) for sample in samples(seed)]
    titles = {"secret": "secrets found", "personal": "personal data found"}
    for group in ("secret", "personal", "look-alike"):
        cells = []
        for part in (False, True, None):
            chosen = [s for s in every if s.group == group and part in (None, s.held_out)]
            right = sum(s.is_right for s in chosen)
            if group == "look-alike":
                cells.append(
                    f"{len(chosen) - right} of {len(chosen)} ({1 - right / len(chosen):.3f})"
                )
            else:
                cells.append(f"{right} of {len(chosen)} ({right / len(chosen):.3f})")
        names = {s.name for s in every if s.group == group}
        title = titles.get(group, "false alarms on look-alikes")
        lines.append(f"| {title} | {len(names)} | {' | '.join(cells)} |")
    for group, title in (("secret", "Secrets"), ("personal", "Personal data")):
        lines += ["", f"## {title}", "", "| format | found | held out |", "| --- | --- | --- |"]
        for name in dict.fromkeys(s.name for s in every if s.group == group):
            chosen = [s for s in every if s.group == group and s.name == name]
            right = sum(s.is_right for s in chosen)
            mark = "yes" if chosen[0].held_out else ""
            lines.append(f"| {name} | {right} of {len(chosen)} | {mark} |")
    alarms = sorted({s.name for s in every if s.group == "look-alike" and not s.is_right})
    lines += ["", "## Look-alikes that raise a false alarm", "", ", ".join(alarms) or "None."]
    lines += [
        "",
        "## Kinds",
        "",
        "Kinds are what a recipe's filters and a push's exceptions name.",
        "",
        "Secrets: " + ", ".join(f"`{kind}`" for kind in sorted(SECRETS)) + ".",
        "",
        "Personal data: " + ", ".join(f"`{kind}`" for kind in sorted(PERSONAL)) + ".",
        "",
        "National phone formats are looked for by the language of the text: "
        + "; ".join(f"{language}: {' '.join(regions)}" for language, regions in REGIONS.items())
        + ".",
        "",
        "Not looked for: names, ages, opinions, health in prose, and addresses without a street "
        "number. Patterns cannot tell them from other words.",
    ]
    assert KINDS == SECRETS | PERSONAL
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
