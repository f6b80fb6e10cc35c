"""Check the metadata of a card before it is committed."""

from __future__ import annotations

from starlette.responses import JSONResponse, PlainTextResponse, Response

from hubkit.local_hub.api.http import Call, field
from hubkit.local_hub.storage.cards import CardError, metadata
from hubkit.untrusted import JsonObject, list_in

_LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m
    bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause
    bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc
    h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 grok2-community gemma unknown other
    """.split()  # noqa: SIM905 - one word a word
)
"""The identifiers of licences that the Hub accepts in a card."""


def validate(call: Call) -> Response:
    """POST /api/validate-yaml."""
    body = call.json()
    content, kind = field(body, "content", str), field(body, "repoType", str, "model")
    errors: list[str] = []
    warnings: list[str] = []
    try:
        card = metadata(content)
    except CardError as error:
        card, errors = {}, [str(error)]
    if not card and not errors:
        warnings.append("empty or missing yaml metadata in repo card")
    errors += _problems(card, kind)
    if call.request.headers.get("accept") == "text/plain":
        lines = [f"- Error: {message}" for message in errors] + [
            f"- Warning: {message}" for message in warnings
        ]
        return PlainTextResponse("\n".join(lines), 400 if errors else 200)
    answer = {
        "errors": [{"message": m} for m in errors],
        "warnings": [{"message": m} for m in warnings],
    }
    return JSONResponse(
        {**answer, "error": "; ".join(errors)} if errors else answer, 400 if errors else 200
    )


def _problems(card: JsonObject, kind: str) -> list[str]:
    problems = []
    names = card.get("license")
    for name in names if isinstance(names, list) else [names]:
        if name is not None and (not isinstance(name, str) or name not in _LICENSES):
            problems.append(f'"license" must be one of [{", ".join(sorted(_LICENSES))}]')
    for key in ("tags", "datasets", "language"):
        if not isinstance(card.get(key), (list, str, type(None))):
            problems.append(f'"{key}" must be a string or a list')
    if not all(isinstance(tag, str) for tag in list_in(card, "tags")):
        problems.append('"tags" must be a list of strings')
    results = card.get("model-index")
    if kind == "model" and results is not None and not isinstance(results, list):
        problems.append('"model-index" must be a list')
    return problems
