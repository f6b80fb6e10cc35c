"""Parameters → an engine's job. The rules, their order and their words are TGI's router's."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from hubkit.local_engine.engine import Sampling
from hubkit.local_engine.http_errors import RequestError, invalid
from hubkit.local_engine.requests import GenerateParameters, Grammar

MAX_STOP_SEQUENCES = 4
MAX_BEST_OF = 2
MAX_TOP_N_TOKENS = 5
_SCHEMA_LIMIT_NODES, _SCHEMA_LIMIT_DEPTH = 2000, 16


def checked_sampling(p: GenerateParameters) -> Sampling:
    """`p` as `Sampling`, with a random seed where none is given. Raises `RequestError` (422)."""
    sampled = p.do_sample or any(
        v is not None for v in (p.temperature, p.top_k, p.top_p, p.typical_p)
    )
    _check_best_of(p, sampled)
    if p.temperature is not None and p.temperature <= 0:
        raise invalid("`temperature` must be strictly positive")
    if p.repetition_penalty is not None and p.repetition_penalty <= 0:
        raise invalid("`repetition_penalty` must be strictly positive")
    if p.frequency_penalty is not None and not -2 <= p.frequency_penalty <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for name, share in (("top_p", p.top_p), ("typical_p", p.typical_p)):
        if share is not None and not 0 < share < 1:
            raise invalid(f"`{name}` must be > 0.0 and < 1.0")
    if p.top_k is not None and p.top_k <= 0:
        raise invalid("`top_k` must be strictly positive")
    return Sampling(
        do_sample=sampled,
        temperature=p.temperature or 1.0,
        top_k=p.top_k or 0,
        top_p=p.top_p or 1.0,
        typical_p=p.typical_p or 1.0,
        repetition_penalty=p.repetition_penalty or 1.0,
        frequency_penalty=p.frequency_penalty or 0.0,
        seed=p.seed if p.seed is not None else secrets.randbits(31),
        grammar=_checked_grammar(p.grammar),
    )


def check_limits(p: GenerateParameters, max_input_tokens: int) -> None:
    """What TGI checks before it tokenizes. Raises `RequestError` (422)."""
    if p.max_new_tokens == 0:
        raise invalid("`max_new_tokens` must be strictly positive")
    if len(p.stop) > MAX_STOP_SEQUENCES:
        raise invalid(
            f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(p.stop)}"
        )
    if p.top_n_tokens is not None and p.top_n_tokens > MAX_TOP_N_TOKENS:
        raise invalid(
            f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_N_TOKENS}. Given: {p.top_n_tokens}"
        )
    if p.truncate is not None and not 0 < p.truncate <= max_input_tokens:
        raise invalid(
            f"`truncate` must be strictly positive and less than {max_input_tokens}. "
            f"Given: {p.truncate}"
        )
    if p.watermark:
        raise invalid("`watermark` is not supported by this engine")


def new_tokens(wanted: int | None, input_length: int, context: int) -> int:
    """How many tokens may be generated. Raises `RequestError` (422) for a request that outgrows the
    context.
    """
    new = wanted if wanted is not None else max(context - input_length, 0)
    if input_length + new > context:
        raise too_long(context, input_length, new)
    if input_length > context - 1:
        raise invalid(f"`inputs` must have less than {context - 1} tokens. Given: {input_length}")
    return new


def too_long(context: int, input_length: int | str, new: int) -> RequestError:
    """422: prompt and completion do not fit."""
    return invalid(
        f"`inputs` tokens + `max_new_tokens` must be <= {context}. "
        f"Given: {input_length} `inputs` tokens and {new} `max_new_tokens`"
    )


def _check_best_of(p: GenerateParameters, sampled: bool) -> None:
    if p.best_of is None or p.best_of == 1:
        return
    if not 0 < p.best_of <= MAX_BEST_OF:
        raise invalid(f"`best_of` must be > 0 and <= {MAX_BEST_OF}. Given: {p.best_of}")
    if not sampled:
        raise invalid("you must use sampling when `best_of` is > 1")
    if p.seed is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")


def _checked_grammar(grammar: Grammar | None) -> Mapping[str, Any] | None:
    if grammar is None:
        return None
    schema = grammar.value
    if grammar.type == "json_schema" and isinstance(schema, dict):
        schema = schema.get("schema")
    if grammar.type == "regex" or not isinstance(schema, dict):
        raise invalid(
            "grammar is not valid: this engine takes a JSON schema object, not a regex or a string"
        )
    if "properties" not in schema:
        raise invalid("grammar is not valid: Grammar must have a 'properties' field")
    _check_schema_size(schema)
    return schema


def _check_schema_size(schema: Any) -> None:
    """A schema is compiled inside the engine's process, so it must be small and flat enough to be
    harmless.
    """
    level, nodes = [schema], 0
    for _ in range(_SCHEMA_LIMIT_DEPTH):
        nodes += len(level)
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if nodes > _SCHEMA_LIMIT_NODES or any(
            isinstance(n, int) and abs(n) > _SCHEMA_LIMIT_NODES for n in level
        ):
            break
        if not level:
            return
    raise invalid("grammar is not valid: the schema is too large")
