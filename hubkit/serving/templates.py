"""How a served model's prompts are printed: by the template that it was pushed with, for servers
that may hold another's, or by its base's own, derived and proven before anything is asked."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hubkit.chat_templates import SeatTemplates, for_base
from hubkit.conversation import Seat
from hubkit.errors import RecipeError, RepoMissingError, SourceError, TemplateError
from hubkit.hub import Hub, Ref
from hubkit.hub.adapters import base_of
from hubkit.serving.client import ClientTemplate
from hubkit.serving.models import ModelSpec, ServedModel
from hubkit.untrusted import parse_json

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def with_own_template(spec: ModelSpec, hub: Hub, ref: Ref) -> ModelSpec:
    """`spec`, its prompts rendered here with the template of `ref` where it is served at an
    address: that server may hold another's, unless it proves that it renders the same.
    """
    if isinstance(spec.source, ServedModel) and spec.source.template is None:
        with suppress(RepoMissingError):
            template = published_template(hub, ref)
            return replace(spec, source=replace(spec.source, template=template))
    return spec


def proven_templates(
    hub: Hub,
    ref: Ref,
    *,
    template: str | None = None,
    named_by: str = "the model",
    seat: Seat = "assistant",
) -> SeatTemplates | None:
    """How a model that is not trained here is asked: its own template, proven for its
    seat.

    Args:
        hub: Where it is; only its small files are downloaded.
        ref: The model's commit. An adapter without a tokenizer is asked as its base is.
        template: What the recipe names instead; see `hubkit.chat_templates.for_base`.
        named_by: The recipe's key of the seat, for errors.
        seat: Whose turns it writes.

    Returns:
        The templates; None where the repo's template is in a GGUF file, which its engine reads.

    Raises:
        TemplateError: It is not proven; the sentence says what to write.
        SourceError: There is no tokenizer."""
    folder = hub.snapshot(ref, allow_patterns=SMALL_FILES)
    if not any((folder / name).exists() for name in _TOKENIZERS):
        if base := base_of(hub, ref):
            return proven_templates(hub, base, template=template, named_by=named_by, seat=seat)
        with hub.translated(f"listing {ref}"):
            files = hub.api.list_repo_files(ref.repo_id, revision=ref.revision)
        if any(name.endswith(".gguf") for name in files):
            return None
    try:
        templates = for_base(folder, template=template)
        templates.require(seat)
    except TemplateError as error:
        raise TemplateError(f"{named_by}: {ref.repo_id}: {error}") from None
    return templates


def client_template(
    templates: SeatTemplates, seat: Seat = "assistant", *, end_token: str | None = None
) -> ClientTemplate:
    """The template of `seat`, for prompts that are rendered here and sent as text; `end_token` ends
    a conversation.
    """
    return ClientTemplate(
        templates.source(seat),
        {"bos_token": templates.bos_token} if templates.bos_token else {},
        stops=templates.stop_texts(seat),
        control_tokens=templates.tokens,
        end_token=end_token,
    )


def with_people_template(
    spec: ModelSpec,
    hub: Hub,
    ref: Ref,
    *,
    end_token: str | None = None,
    template: str | None = None,
    named_by: str = "the model",
) -> ModelSpec:
    """`spec` for a model that writes people's turns itself, under its own user header: its prompts
    are rendered here, whoever serves it.

    The messages of a request stay those of the asker's seat; rendering puts them back under the
    headers that the model knows.

    Args:
        spec: How it is served.
        hub: Where its tokenizer is.
        ref: Its commit.
        end_token: The token with which it ends a conversation.
        template: What the recipe names instead of its own; as in `proven_templates`.
        named_by: The recipe's key of the seat, for errors.

    Raises:
        TemplateError: Its template is not proven.
        SourceError: There is no tokenizer.
        RecipeError: Its tokenizer has no such token.
    """
    proven = proven_templates(hub, ref, template=template, named_by=named_by, seat="user")
    if proven is None:
        raise SourceError(
            f"{named_by}: {ref} holds only a GGUF file; name the repo that its weights came from, "
            "whose tokenizer prompts are rendered with, and give the address of the server"
        )
    if end_token and end_token not in proven.tokens:
        raise RecipeError(
            f"{named_by}: end_token {end_token!r} is no token of {ref}; its own are "
            f"{', '.join(sorted(proven.tokens)[:12])}"
        )
    return replace(spec, template=client_template(proven, "user", end_token=end_token))


def published_template(hub: Hub, ref: Ref) -> ClientTemplate:
    """The chat template that the repo itself ships, and the end of its turns. Raises
    `RepoMissingError` without one, `SourceError` where its tokenizer's configuration is no JSON.
    """
    source = hub.read(ref, "chat_template.jinja").decode("utf-8")
    try:
        config = parse_json(hub.read(ref, "tokenizer_config.json"))
    except ValueError as error:
        raise SourceError(f"tokenizer_config.json of {ref} is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise SourceError(f"tokenizer_config.json of {ref} is no JSON object")
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if value:
            special[name] = str(value["content"] if isinstance(value, dict) else value)
    stops = [special["eos_token"]] if "eos_token" in special else []
    added = config.get("added_tokens_decoder")
    control = [
        str(token["content"])
        for token in (added.values() if isinstance(added, dict) else ())
        if isinstance(token, dict) and token.get("special") and token.get("content")
    ]
    return ClientTemplate(source, special, stops=stops, control_tokens=control)
