"""What a recipe's seat means for an `Endpoint`."""

from __future__ import annotations

from typing import Any

from hubkit.serving.credentials import headers_in, key_in


def seat_options(config: Any, *, said_by: str) -> dict[str, Any]:
    """The options of `Endpoint` that a seat of a recipe decides.

    Args:
        config: The seat's block, a `SeatConfig`.
        said_by: The recipe's key of the seat, for messages.

    Raises:
        RecipeError: An environment variable that it names is not set.
    """
    return {
        "profile": config.profile,
        "model": config.model,
        "sampling": config.sampling.model_dump(),
        "token": key_in(config.token_env, said_by=f"{said_by}.token_env"),
        "headers": headers_in(config.headers, said_by=f"{said_by}.headers"),
        "extra_body": config.extra_body,
        "chat_template_kwargs": config.chat_template_kwargs,
        "session_header": config.session_header,
    }
