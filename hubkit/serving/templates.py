"""The template that a trained model was pushed with, for servers that may hold another's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hubkit.errors import RepoMissingError, SourceError
from hubkit.hub import Hub, Ref
from hubkit.serving.client import ClientTemplate
from hubkit.serving.models import ModelSpec, ServedModel
from hubkit.untrusted import parse_json


def with_own_template(spec: ModelSpec, hub: Hub, ref: Ref) -> ModelSpec:
    """`spec`, its prompts rendered here with the template of `ref` where it is served at an
    address: that server may hold another's, unless it proves that it renders the same.
    """
    if isinstance(spec.source, ServedModel) and spec.source.template is None:
        with suppress(RepoMissingError):
            template = published_template(hub, ref)
            return replace(spec, source=replace(spec.source, template=template))
    return spec


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
    return ClientTemplate(source, special, stops=stops)
