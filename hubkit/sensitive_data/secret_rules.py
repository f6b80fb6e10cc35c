"""Rules for secrets: keys, tokens, passwords, private keys.

Patterns of 17 providers are detect-secrets' own (Apache-2.0); the other ones follow the prefixes
that providers publish so that leaks can be found. Values without a prefix are found where a name
such as ``api_key`` or ``password`` stands before them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module

from hubkit.sensitive_data.rules import (
    Finding,
    Match,
    Rule,
    Text,
    Where,
    before,
    entropy,
    is_placeholder,
    is_random,
    not_a_placeholder,
    rule,
    value_of,
    words,
)
from hubkit.untrusted import parse_json

_L, _R = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"

# (kind, hints, pattern): tokens that their prefix gives away.
_PREFIXED = (
    ("adobe_secret", "p8e-", r"p8e-[A-Za-z0-9]{32}"),
    ("ai_provider_key", "gsk_", r"gsk_[A-Za-z0-9]{40,60}"),
    ("ai_provider_key", "r8_", r"r8_[A-Za-z0-9]{37,40}"),
    ("ai_provider_key", "pplx-", r"pplx-[A-Za-z0-9]{40,64}"),
    ("ai_provider_key", "xai-", r"xai-[A-Za-z0-9]{60,100}"),
    ("ai_provider_key", "nvapi-", r"nvapi-[\w-]{50,90}"),
    ("ai_provider_key", "csk-", r"csk-[a-z0-9]{40,60}"),
    ("ai_provider_key", "fw_", r"fw_[A-Za-z0-9]{20,40}"),
    ("ai_provider_key", "pcsk_", r"pcsk_[A-Za-z0-9_]{40,90}"),
    ("ai_provider_key", "lsv2_", r"lsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{10}"),
    ("ai_provider_key", "sk-lf-", r"sk-lf-[a-f0-9-]{36}"),
    ("ai_provider_key", "tgp_v1_", r"tgp_v1_[\w-]{40,50}"),
    ("ai_provider_key", "jina_", r"jina_[A-Za-z0-9]{50,80}"),
    ("ai_provider_key", "wandb_v1_", r"wandb_v1_[A-Za-z0-9_]{40,100}"),
    ("airtable_token", "pat", r"pat[A-Za-z0-9]{14}\.[a-f0-9]{64}"),
    ("alibaba_key", "LTAI", r"LTAI[A-Za-z0-9]{12,26}"),
    ("anthropic_key", "sk-ant-", r"sk-ant-[\w-]{20,200}"),
    (
        "atlassian_token",
        "ATATT3 ATCTT3 ATBB",
        r"(?:ATATT3|ATCTT3)[\w=-]{50,250}|ATBB[A-Za-z0-9]{32}",
    ),
    ("buildkite_token", "bkua_", r"bkua_[a-f0-9]{40}"),
    ("circleci_token", "CCIPAT_ CCIPRJ_", r"CCIP(?:AT|RJ)_[A-Za-z0-9]{22}_[a-f0-9]{40}"),
    ("cloudflare_key", "v1.0-", r"v1\.0-[a-f0-9]{24}-[a-f0-9]{100,180}"),
    ("contentful_token", "CFPAT-", r"CFPAT-[\w-]{43}"),
    ("databricks_token", "dapi dose", r"(?:dapi|dose)[a-f0-9]{32}(?:-\d)?"),
    ("digitalocean_token", "dop_v1_ doo_v1_ dor_v1_", r"do[opr]_v1_[a-f0-9]{64}"),
    ("discord_token", "mfa.", r"mfa\.[\w-]{84}"),
    ("docker_token", "dckr_", r"dckr_[po]at_[\w-]{27,40}"),
    (
        "doppler_token",
        "dp.",
        r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{40,44}",
    ),
    ("dropbox_token", "sl.", r"sl\.(?:u\.)?[\w-]{100,1500}"),
    ("dynatrace_token", "dt0", r"dt0[a-z]\d\d\.[A-Z0-9]{24}\.[A-Z0-9]{64}"),
    ("easypost_key", "EZAK EZTK", r"EZ[AT]K[A-Za-z0-9]{54}"),
    ("facebook_token", "EAA", r"EAA[A-Za-z0-9]{60,250}"),
    ("fastly_token", "fastly", r"fastly[_-]?(?:api[_-]?)?(?:key|token)\W{1,4}(?P<value>[\w-]{32})"),
    ("figma_token", "figd_", r"figd_[\w-]{38,60}"),
    ("flutterwave_key", "FLWSECK", r"FLWSECK(?:_TEST)?-[A-Za-z0-9]{12,40}-X"),
    ("github_token", "github_pat_", r"github_pat_\w{50,100}"),
    ("github_token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{36,255}"),
    (
        "gitlab_token",
        "glpat- gldt- glft- glsoat- glrt- glcbt- glimt- glptt- glagent- gloas- glffct- glwt-",
        r"(?:glpat|gldt|glft|glsoat|glrt|glcbt|glimt|glptt|glagent|gloas|glffct"
        r"|glwt)-[\w.-]{20,60}",
    ),
    ("google_key", "AIza", r"AIza[\w-]{35}(?![\w-])"),
    ("google_key", "GOCSPX-", r"GOCSPX-[\w-]{28}"),
    ("google_key", "ya29.", r"ya29\.[\w-]{30,1500}"),
    ("google_key", "1//0", r"1//0[\w-]{40,120}"),
    ("google_key", "GOOG", r"GOOG1?[A-Z0-9]{18,60}"),
    (
        "grafana_token",
        "glc_ glsa_",
        r"glsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}|glc_[A-Za-z0-9+/]{32,400}={0,2}",
    ),
    ("hashicorp_token", "hvs. hvb. hvr.", r"hv[sbr]\.[\w-]{24,250}"),
    ("heroku_key", "HRKU-", r"HRKU-[\w-]{36,70}"),
    ("hubspot_token", "pat-", r"pat-(?:na|eu|ap)\d-[a-f0-9]{8}(?:-[a-f0-9]{4}){3}-[a-f0-9]{12}"),
    ("huggingface_token", "hf_ api_org_", r"(?:hf|api_org)_[A-Za-z0-9]{30,40}"),
    ("jfrog_token", "cmVmdGtu", r"cmVmdGtu[A-Za-z0-9]{56}"),
    ("linear_key", "lin_", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,64}"),
    ("mailgun_key", "key-", r"key-[a-f0-9]{32}"),
    ("mapbox_token", "sk.eyJ", r"sk\.eyJ[\w-]{40,120}\.[\w-]{20,30}"),
    ("netlify_token", "nfp_", r"nfp_[A-Za-z0-9]{36,40}"),
    ("newrelic_key", "NRAK- NRII- NRJS- NRSP-", r"NR(?:AK|II|JS|SP)-[A-Za-z0-9-]{19,32}"),
    ("notion_token", "ntn_ secret_", r"ntn_[A-Za-z0-9]{40,50}|secret_[A-Za-z0-9]{43}"),
    ("npm_token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    ("nuget_key", "oy2", r"oy2[a-z0-9]{43}"),
    (
        "onepassword_token",
        "ops_ey A3-",
        r"ops_eyJ[\w+/=-]{100,1200}|A3-[A-Z0-9]{6}(?:-[A-Z0-9]{5,11}){4,5}",
    ),
    (
        "openai_key",
        "sk-",
        r"sk-(?:(?:proj|svcacct|admin|None)-[\w-]{40,250}|or-v1-[a-f0-9]{64}|[A-Za-z0-9]{48}"
        r"|[a-f0-9]{32})",
    ),
    (
        "paypal_token",
        "access_token$",
        r"access_token\$(?:production|sandbox)\$[a-z0-9]{16}\$[a-f0-9]{32}",
    ),
    ("planetscale_token", "pscale_", r"pscale_(?:tkn|pw|oauth)_[\w=.-]{32,64}"),
    ("postman_key", "PMAK-", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}"),
    ("prefect_key", "pnu_ pnb_", r"pn[ub]_[A-Za-z0-9]{36}"),
    ("pulumi_token", "pul-", r"pul-[a-f0-9]{40}"),
    ("pypi_token", "pypi-", r"pypi-[\w-]{80,300}"),
    ("razorpay_key", "rzp_", r"rzp_(?:live|test)_[A-Za-z0-9]{14,24}"),
    ("resend_key", "re_", r"re_[A-Za-z0-9]{8}_[A-Za-z0-9]{24}"),
    ("sendgrid_key", "SG.", r"SG\.[\w-]{16,32}\.[\w-]{16,64}"),
    ("sendinblue_key", "xkeysib-", r"xkeysib-[a-f0-9]{64}-[A-Za-z0-9]{16}"),
    ("sentry_token", "sntry", r"sntry[su]_[A-Za-z0-9+/=_-]{40,400}"),
    (
        "service_token",
        "rdme_ rubygems_ cio CLOJARS_ tfp_ shippo_ sqp_ squ_ sqa_",
        r"(?:rdme_[a-z0-9]{70}|rubygems_[a-f0-9]{48}|cio[A-Za-z0-9]{32}|CLOJARS_[a-z0-9]{60}"
        r"|tfp_[\w.=-]{40,60}|shippo_(?:live|test)_[a-f0-9]{40}|sq[pua]_[a-f0-9]{40})",
    ),
    (
        "service_token",
        "duffel_ phx_ dG9rO FlyV1 rnd_ vcp_ vck_",
        r"(?:duffel_(?:test|live)_[\w=-]{43}|phx_[A-Za-z0-9]{40,60}|rnd_[A-Za-z0-9]{24,40}"
        r"|FlyV1 fm\d[\w+/=,]{60,900}|vc[pk]_[A-Za-z0-9]{40,64}|dG9rO[\w+/=]{50,80})",
    ),
    (
        "service_token",
        "SCW AQVN t1. AKID tskey-",
        r"(?:SCW[A-Z0-9]{17}|AQVN[\w-]{35,38}|t1\.[A-Z0-9a-z_-]{20,400}\.[A-Za-z0-9_-]{80,90}"
        r"|AKID[A-Za-z0-9]{32}|tskey-[a-z]{2,9}-[A-Za-z0-9]{8,24}(?:CNTRL)?-[A-Za-z0-9]{20,40})",
    ),
    ("shopify_token", "shp", r"shp(?:at|ss|ca|pa|tka)_[a-fA-F0-9]{32}"),
    (
        "slack_token",
        "xox xapp- xoxe",
        r"(?:xox[abeoprs]-[\w.-]{10,250}|xapp-\d-[A-Z0-9]{8,14}-\d{8,16}-[a-f0-9]{40,80})",
    ),
    ("square_secret", "sq0 EAAA", r"(?:sq0(?:atp|csp|idp)-[\w-]{22,43}|EAAA[\w-]{60})"),
    (
        "stripe_key",
        "rk_live_ sk_live_ rk_test_ sk_test_ whsec_",
        r"(?:[rs]k_(?:live|test)_[A-Za-z0-9]{16,120}|whsec_[A-Za-z0-9+/=]{24,64})",
    ),
    ("supabase_key", "sbp_ sb_secret_", r"(?:sbp_[a-f0-9]{40}|sb_secret_[\w-]{22,60})"),
    ("twitter_token", "AAAAAAAAAAAA", r"A{20,26}[A-Za-z0-9%]{60,120}"),
    (
        "webhook_url",
        "hooks.",
        r"hooks\.(?:slack|zapier)\.com/(?:services|workflows|triggers|hooks/catch)/[\w/]{15,90}",
    ),
    ("webhook_url", "discord", r"discord(?:app)?\.com/api/webhooks/\d{17,20}/[\w-]{60,70}"),
    ("crypto_key", "xprv", r"xprv[1-9A-HJ-NP-Za-km-z]{107}"),
    ("crypto_key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    (
        "azure_key",
        "SharedAccessKey= SharedSecretValue= accesskey=",
        r"(?:SharedAccessKey|SharedSecretValue|accesskey)=(?P<value>[A-Za-z0-9+/]{40,90}={0,2})",
    ),
    ("aws_key", "X-Amz-Signature= aws_session_token", r"X-Amz-Signature=(?P<value>[a-f0-9]{64})"),
)

# The same, of tokens that begin before their hint.
_MARKED = (
    ("azure_key", "Q~", r"[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.-]{31,34}"),
    (
        "azure_key",
        "AZDO JQQJ99",
        r"[A-Za-z0-9]{52}AZDO[A-Za-z0-9]{4}|[A-Za-z0-9]{32,60}JQQJ99[A-Za-z0-9]{18,24}",
    ),
    (
        "azure_key",
        "?sig= &sig= ;sig=",
        r"(?<=[?&;]sig=)[A-Za-z0-9%+/]{42,64}(?:%3D|=)?",
    ),
    ("firebase_key", ":APA91b", r"AAAA[\w-]{7}:APA91b[\w-]{100,180}"),
    ("hashicorp_token", ".atlasv1.", r"[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{60,70}"),
    ("telegram_token", ":AA", r"\d{8,10}:AA[\w-]{32,34}"),
    (
        "webhook_url",
        ".webhook.office.com",
        r"[a-z0-9-]{1,60}\.webhook\.office\.com/webhookb2/[\w@/-]{60,300}",
    ),
)

# detect-secrets' class, its module there, our kind, and literals of which its patterns need one.
# Its detectors that go by words such as "key" near any hex string are left out: in talk about code
# they find little else than examples.
_LIBRARY = (
    ("ArtifactoryDetector", "artifactory", "artifactory_key", "AKC"),
    ("AWSKeyDetector", "aws", "aws_key", "AKIA ASIA ABIA ACCA A3T aws AWS Aws"),
    ("AzureStorageKeyDetector", "azure_storage_key", "azure_key", "AccountKey="),
    ("DiscordBotTokenDetector", "discord", "discord_token", ""),
    ("GitHubTokenDetector", "github_token", "github_token", "ghp_ gho_ ghu_ ghs_ ghr_"),
    (
        "GitLabTokenDetector",
        "gitlab_token",
        "gitlab_token",
        "GR1348941 glpat- gldt- glft- glsoat- glrt- glcbt- glimt- glptt- glagent- gloas-",
    ),
    ("MailchimpDetector", "mailchimp", "mailchimp_key", "-us"),
    ("NpmDetector", "npm", "npm_token", ":_authToken"),
    ("OpenAIDetector", "openai", "openai_key", "T3BlbkFJ"),
    ("PypiTokenDetector", "pypi_token", "pypi_token", "pypi-Ag"),
    ("SendGridDetector", "sendgrid", "sendgrid_key", "SG."),
    ("SlackDetector", "slack", "slack_token", "xox hooks.slack"),
    ("SquareOAuthDetector", "square_oauth", "square_secret", "sq0csp-"),
    ("StripeDetector", "stripe", "stripe_key", "k_live_"),
    ("TelegramBotTokenDetector", "telegram_token", "telegram_token", ""),
    ("TwilioKeyDetector", "twilio", "twilio_key", ""),
)

# The shortest token of those whose text holds nothing to look for.
_RUNS = {"discord_token": 58, "telegram_token": 44, "twilio_key": 34}

_NAMED = (  # kinds of values that only their surroundings give away
    "api_key",
    "authorization_header",
    "crypto_key",
    "json_web_token",
    "one_time_password_secret",
    "password",
    "password_hash",
    "password_in_url",
    "private_key",
    "session_cookie",
)
KINDS = frozenset(
    {kind for kind, *_ in (*_PREFIXED, *_MARKED)} | {row[2] for row in _LIBRARY} | {*_NAMED}
)


@cache
def secret_rules() -> tuple[Rule, ...]:
    """Every rule for secrets, compiled at first use."""
    return (
        *(_prefixed(*row) for row in _PREFIXED),
        *(_marked(*row) for row in _MARKED),
        *_token_rules(),
        *(_library_rule(*row) for row in _LIBRARY),
        *_context_rules(),
    )


_AT_PREFIX = Where(lead=0, reach=1, run=16)


def _prefixed(kind: str, hints: str, pattern: str) -> Rule:
    check = _twitter_token if kind == "twitter_token" else _random_enough
    return rule(kind, hints, f"{_L}(?:{pattern}){_R}", check=check, where=_AT_PREFIX)


def _marked(kind: str, hints: str, pattern: str) -> Rule:
    boundary = "" if pattern.startswith("(?<=") else _L
    where = Where(lead=80, reach=400, run=16)
    return rule(kind, hints, f"{boundary}(?:{pattern}){_R}", check=_random_enough, where=where)


def _token_rules() -> tuple[Rule, ...]:
    """Tokens whose form alone gives them away, looked for in runs that are long enough."""
    discord = r"[MNO][A-Za-z\d_-]{23,27}\.[\w-]{6,7}\.[\w-]{27,40}"
    return tuple(
        rule(
            kind,
            "",
            f"{_L}(?:{pattern}){_R}",
            check=_random_enough,
            where=Where("runs", run=_RUNS[kind]),
        )
        for kind, pattern in (
            ("discord_token", discord),
            ("twilio_key", "(?:AC|SK)[a-f0-9]{32}"),
        )
    )


def _twitter_token(match: Match) -> bool:
    return is_random(value_of(match).lstrip("A"))


def _random_enough(match: Match) -> bool:
    """A prefixed token has digits or mixed case after its prefix; an identifier in code has not."""
    value = value_of(match)
    return (
        not is_placeholder(value)
        and (any(c.isdigit() for c in value[3:]) or entropy(value) > 3.8)
        and not _IDENTIFIER.fullmatch(value)
    )


_IDENTIFIER = re.compile(r"[a-z]{2,}(?:[_-][a-z]{2,}\d?)+")


def _library_rule(name: str, module: str, kind: str, hints: str) -> Rule:
    detector = getattr(import_module(f"detect_secrets.plugins.{module}"), name)()
    patterns = tuple(detector.denylist)
    if kind == "artifactory_key":
        patterns = patterns[:1]  # its second pattern is any word that begins with AP
    where = (
        Where(lead=300, reach=_LIBRARY_CHARS, run=16) if hints else Where("runs", run=_RUNS[kind])
    )
    patterns = tuple(re.compile(bounded(p.pattern), p.flags) for p in patterns)
    return Rule(kind, patterns, tuple(hints.split()), not_a_placeholder, where=where)


def bounded(pattern: str) -> str:
    """`pattern` with an end to each repetition that has none: ``+`` becomes ``{1,400}``."""
    parts: list[str] = []
    in_class = False
    for part in _PATTERN_PARTS.findall(pattern):
        if part == "[":
            in_class = True
        elif part == "]":
            in_class = False
        elif not in_class and part in "*+":
            part = f"{{{int(part == '+')},{_LIBRARY_REPEATS}}}"
        elif not in_class and part.endswith(",}"):
            part = f"{part[:-1]}{_LIBRARY_CHARS}}}"
        parts.append(part)
    return "".join(parts)


_LIBRARY_CHARS, _LIBRARY_REPEATS = 1200, 400
_PATTERN_PARTS = re.compile(r"\\.|\{\d+,\d*\}|.", re.DOTALL)


_PASSWORD_WORDS = (
    r"password|passwd|passphrase|passcode|\bpwd|\bpass|db_pass|passwort|kennwort|contrase(?:ñ|n)a"
    r"|mot de passe|senha|parola|wachtwoord|has(?:ł|l)o|lösenord|пароль|密码|密碼"
    r"|パスワード|비밀번호"
)
_PASSWORD_HINTS = (
    "pass pwd kennwort contrase senha parola wachtwoord haslo hasło "
    "lösenord пароль 密码 密碼 パスワード 비밀번호"
)
_SEPARATOR = (
    r"""["'`*]{0,3}\s{0,3}(?:=>|:=|==?|:|：|＝| is:?| ist| es| est| è|は|是)\s{0,3}["'`*]{0,3}"""
)
_KEY_NAMES = (
    r"api[_ -]?key|apikey|app[_-]?key|secret[_ -]?(?:access[_ -]?)?key|access[_ -]?key|auth[_ "
    r"-]?token|"
    r"access[_ -]?token|refresh[_ -]?token|client[_ -]?secret|app[_-]?secret|private[_ -]?key|"
    r"signing[_ -]?(?:key|secret)|encryption[_ -]?key|master[_-]?key|account[_-]?key|"
    r"webhook[_-]?secret|license[_ -]?key|deploy[_ -]?key|secret[_ -]?token|consumer[_-]?secret|"
    r"session[_-]?token|bearer|secret|token|\bkey"
)
_USER_OPTIONS = tuple(
    option + space for option in ("-u", "-a", "--user", "--auth") for space in " \t\n\r\f\v"
)
_VALUE_BREAK = r"""\s"'`,;&<>|）」。，、"""


def _context_rules() -> tuple[Rule, ...]:
    password = (
        rf"(?:{_PASSWORD_WORDS})[A-Za-z0-9_]{{0,12}}{_SEPARATOR}(?P<value>[^{_VALUE_BREAK}]"
        r"{6,64})",
        rf"--?(?:password|passwd|pass)[= ]['\"]?(?P<value>[^{_VALUE_BREAK}]{{6,64}})",
        rf"\bpassword\s{{1,8}}(?P<value>[^{_VALUE_BREAK}]{{6,64}})",
    )
    return (
        _PrivateKeys(),
        rule(
            "json_web_token",
            "eyJ",
            r"\beyJ[\w-]{5,2000}\.[\w-]{1,8000}(?:\.[\w-]{0,2000})?",
            check=_web_token,
            where=_AT_PREFIX,
        ),
        rule(
            "password_in_url",
            "://",
            r"://[^\s:/?#@'\"<>]{0,64}:[^\s/?#'\"<>@]{3,128}@",
            check=_url_password,
            where=Where(lead=0, reach=1),
        ),
        rule(
            "password",
            _PASSWORD_HINTS,
            *password,
            check=_password,
            folded=True,
            where=Where(lead=8, reach=200),
        ),
        rule(
            "password",
            "mysql sshpass --pw",
            rf"\bmysql\w{{0,6}}[^\n]{{0,80}}?\s-p(?P<value>[^{_VALUE_BREAK}]{{6,64}})",
            rf"\bsshpass\s{{1,3}}-p\s{{0,3}}['\"]?(?P<value>[^{_VALUE_BREAK}]{{6,64}})",
            rf"--pw[= ]['\"]?(?P<value>[^{_VALUE_BREAK}]{{6,64}})",
            check=_password,
            folded=True,
            where=Where(reach=240),
        ),
        rule(
            "password",
            "machine",
            r"\bmachine\s{1,4}\S{1,100}\s{1,8}login\s{1,4}\S{1,100}\s{1,8}password\s{1,4}(?P<val"
            r"ue>\S{4,100})",
            check=not_a_placeholder,
            folded=True,
            where=Where(lead=0, reach=1),
        ),
        rule(
            "password",
            _USER_OPTIONS,
            r"(?:-u|--user|--auth|-a)\s{1,3}['\"]?[\w.@-]{1,64}:(?P<value>[^\s'\"]{5,64})",
            check=_credential,
            where=Where(lead=8, reach=160),
            gate="curl|wget|http",
        ),
        rule(
            "password",
            ":5432: :*: :3306: :1433:",
            r"(?m)^[\w.*-]{1,100}:(?:\d{2,5}|\*):[\w*.-]{1,64}:[\w*.-]{1,64}:(?P<value>[^\s:]{4,"
            r"100})$",
            check=not_a_placeholder,
        ),
        rule(
            "password",
            "wifi:",
            r"WIFI:[^\n]{0,120}?P:(?P<value>[^;\n]{8,64})",
            check=not_a_placeholder,
            folded=True,
        ),
        rule(
            "password_hash",
            "$2a$ $2b$ $2x$ $2y$ $apr1$ $1$ $5$ $6$ $y$ $argon2 $scrypt$ pbkdf2_sha256$",
            r"(?<![\w$])\$(?:2[abxy]\$\d\d\$[./A-Za-z0-9]{53}|apr1\$[./\w]{1,8}\$[./\w]{22}"
            r"|[156y]\$[./\w$=]{20,130}|argon2(?:id|i|d)\$v=[./\w$=,+-]{20,200}"
            r"|scrypt\$[./\w$=,+-]{20,200})",
            r"\bpbkdf2_sha256\$\d{3,8}\$[\w./+=-]{6,64}\$[\w./+=-]{40,60}",
            check=_not_repeating,
            where=Where(lead=0, reach=1),
        ),
        rule(
            "one_time_password_secret",
            "otpauth://",
            r"otpauth://[^\s'\"]{1,200}?secret=(?P<value>[A-Z2-7]{16,64})",
            check=not_a_placeholder,
            folded=True,
        ),
        rule(
            "authorization_header",
            "authorization bearer basic",
            r"authorization[\"']?\s{0,3}[:=,]\s{0,3}[\"']?(?:bearer|token|basic|apikey"
            r"|splunk)\s{1,3}(?P<value>[\w+/=.~-]{12,2000})",
            r"\b(?:bearer|basic)\s{1,3}(?P<value>[\w+/=.~-]{20,2000})",
            check=_header,
            folded=True,
            where=Where(lead=0, reach=1, near="runs", run=12),
        ),
        rule(
            "api_key",
            "key secret token bearer",
            rf"(?:{_KEY_NAMES})(?:s|_?\d|_[A-Za-z0-9_]{{1,12}})?{_SEPARATOR}(?:0x"
            rf"|base64:)?(?P<value>[\w+/=.~!@#%^*-]{{16,512}})",
            check=_named_key,
            folded=True,
            where=Where(lead=24, reach=640, near="runs", run=16),
        ),
        rule(
            "session_cookie",
            "cookie",
            r"cookie[\"']?\s{0,2}[:=]\s{0,2}[^\n]{0,200}?\b\w{0,20}(?:sess|sid|token"
            r"|auth)\w{0,20}=(?P<value>[\w%.+/=-]{20,1000})",
            check=lambda m: is_random(value_of(m)),
            folded=True,
            where=Where(lead=0, reach=1, run=20),
        ),
        rule(
            "crypto_key",
            "",
            r"(?<![A-Za-z0-9])[5KL][1-9A-HJ-NP-Za-km-z]{50,51}(?![A-Za-z0-9])",
            check=_wallet_key,
            where=Where("runs", run=51),
        ),
        rule(
            "crypto_key",
            "seed recovery mnemonic",
            r"(?:seed|recovery|mnemonic)(?: phrase| words?)?\W{1,6}(?:is\W{1,4})?(?P<value>(?:[a"
            r"-z]{3,8} ){11,23}[a-z]{3,8})(?![a-z])",
            folded=True,
            where=Where(lead=0, reach=1),
        ),
    )


class _PrivateKeys(Rule):
    """Blocks from ``-----BEGIN … PRIVATE KEY-----`` to their end, where they have one.

    The ends are looked up once, so that many beginnings without an end take linear time."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("private_key", (), ("PRIVATE KEY", "PuTTY"))

    def findings(self, text: Text, hints: Sequence[str]) -> Iterator[Finding]:
        """Every such block of `text`."""
        value, at = text.value, 0
        if not any(hint in value for hint in hints):
            return
        ends, begins = _Places(value, "-----END"), _Places(value, "-----BEGIN")
        while match := _KEY_BEGIN.search(value, at):
            end, following = ends.after(match.end()), begins.after(match.end())
            if end < 0 or (0 <= following < end):
                body = _KEY_BODY.match(value, match.end())
                at = body.end() if body else match.end()
                closed = False
            else:
                line = _KEY_END.match(value, end)
                at, closed = (line.end() if line else end), True
            if closed or at - match.end() > 40:
                body_end = end if closed else at
                if not is_placeholder_block(value[match.end() : body_end]):
                    yield Finding(self.kind, match.start(), at)
        blanks = _Places(value, "\n\n")
        for match in _PUTTY.finditer(value):
            end = blanks.after(match.end())
            yield Finding(self.kind, match.start(), end if end >= 0 else len(value))


class _Places:
    """Where a literal is in a text, asked for ever later places: each is looked up once."""

    def __init__(self, text: str, literal: str) -> None:
        self._text, self._literal = text, literal
        self._next = text.find(literal)

    def after(self, place: int) -> int:
        """The first place from `place` on; -1 where there is none."""
        if 0 <= self._next < place:
            self._next = self._text.find(self._literal, place)
        return self._next


_KEY_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,60}-----|-----END")
_KEY_BODY = re.compile(r"(?:[\s\\nr]{0,4}[A-Za-z0-9+/=:,. -]{1,200}){1,200}")
_PUTTY = re.compile(r"PuTTY-User-Key-File-[23]: ")


def is_placeholder_block(body: str) -> bool:
    """Whether the body of a key block only stands for one ("...", nothing at all)."""
    letters = re.sub(r"[^A-Za-z0-9+/]", "", body)
    return len(letters) < 8


def _web_token(match: Match) -> bool:
    head = match[0].split(".")[0]
    try:
        return isinstance(parse_json(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))), dict)
    except ValueError:
        return False


_EXAMPLE_PASSWORDS = words(
    """password password1 password12 password123 password1234 passw0rd p@ssw0rd p@ssword pass1234
    secret secret123 admin admin123 test test123 test1234 letmein changeme change_me 123456
    1234567 12345678 123456789 1234567890 qwerty qwerty123 hunter2 root toor guest pass passwd
    postgres mysql mypassword mysecretpassword pwd"""
)
_CODE = re.compile(
    r"[\[\](){}]|^[A-Za-z_]\w*(?:\.|->|::)[A-Za-z_]|process\.env|^os\.|^self\.|^\$|^%|^@|^<|^\\"
    r"|^/|://"
)


def _password(match: Match) -> bool:
    """A word after "password" is one when it holds letters and digits or signs, and is no code."""
    value = value_of(match).rstrip(".!?*:")
    low = value.lower()
    if len(value) < 6 or low in _EXAMPLE_PASSWORDS or is_placeholder(value) or _CODE.search(value):
        return False
    if any(word in low for word in ("passw", "getpass", "user", "input", "null", "http", "hash")):
        return False
    classes = sum(
        any(test(c) for c in value)
        for test in (str.islower, str.isupper, str.isdigit, lambda c: not c.isalnum())
    )
    has_digit = any(c.isdigit() for c in value)
    is_number = re.fullmatch(r"[\d.,:/-]+|\d+\w{1,3}|[a-z]+[_-]?\d", low) is not None
    scrambled = len(re.findall(r"[a-z][A-Z]", value)) >= 3 and len(value) >= 10
    return (has_digit and classes >= 2 and not is_number) or scrambled


def _credential(match: Match) -> bool:
    value = value_of(match)
    return (
        value.lower() not in _EXAMPLE_PASSWORDS
        and not is_placeholder(value)
        and not value.isalpha()
    )


def _url_password(match: Match) -> bool:
    user, _, password = match[0][3:-1].partition(":")
    low = password.lower()
    return not (
        low in _EXAMPLE_PASSWORDS
        or low == user.lower()
        or is_placeholder(password)
        or "example" in user.lower()
        or "pass" in low
        or low in ("port", "token", "x-oauth-basic", "user", "pw")
    )


def _not_repeating(match: Match) -> bool:
    return len(set(match[0])) > 12 and "..." not in match[0]


def _header(match: Match) -> bool:
    value = value_of(match)
    if "basic" in match[0].lower():
        try:
            decoded = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode()
        except (ValueError, UnicodeDecodeError):
            return False
        _, colon, password = decoded.partition(":")
        return bool(colon and password) and not is_placeholder(decoded) and decoded.isprintable()
    return is_random(value) or (value.startswith("eyJ") and not is_placeholder(value))


_HARMLESS_NAME = re.compile(
    r"(?:next|page|csrf|xsrf|eos|bos|pad|unk|mask|cls|sep|sync|cursor|continuation|public|"
    r"publishable|primary|foreign|cache|sort|partition|idempotency|site|object|hash|lookup|"
    r"ssh|host|map|dict|json|row|index|registry|shared|measurement)[ _-]?(?:\w{1,10}[_-])?$"
)
_HARMLESS_KEY = re.compile(r"key_?(?:id|name|path|file|arn|type|size|pair|word|s\b)", re.IGNORECASE)


def _named_key(match: Match) -> bool:
    """A random value after a name such as ``api_key``; not after ``public_key``."""
    name = match[0][: match.start("value") - match.start()]
    value = value_of(match).rstrip(".")
    if _HARMLESS_NAME.search(before(match, 24)) or _HARMLESS_KEY.match(name):
        return False
    if _CODE.search(value) or "sha256" in value or value.startswith(("sha", "data:", "ssh-")):
        return False
    if re.search(r"/.*[-.]|[-.].*/", value):  # a path or the name of a repo
        return False
    if name[:3].lower() == "key" and len(value) < 32:  # a bare "key" says little
        return False
    return len(value) >= 16 and is_random(value) and not re.search(r"[a-z]{12}|[A-Z]{12}", value)


_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def base58check(value: str) -> bytes | None:
    """The payload of a base58check text, version byte first; None where its checksum is wrong."""
    number = 0
    for char in value:
        number = number * 58 + _BASE58.index(char)
    zeros = len(value) - len(value.lstrip("1"))
    data = b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")
    payload, checksum = data[:-4], data[-4:]
    double = hashlib.sha256(hashlib.sha256(payload).digest()).digest()
    return payload if len(data) > 4 and double[:4] == checksum else None


def _wallet_key(match: Match) -> bool:
    payload = base58check(match[0])
    return payload is not None and len(payload) in (33, 34) and payload[0] == 0x80
