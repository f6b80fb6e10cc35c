"""The errors a client gets: TGI's statuses, words and `error_type`s."""

from __future__ import annotations

from hubkit.errors import EngineError


class RequestError(EngineError):
    """A request that is answered with `status` and `{"error": str(self), "error_type":
    error_type}`.
    """

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.error_type = status, error_type


def invalid(message: str) -> RequestError:
    """422: the request cannot be served as it stands."""
    return RequestError(422, "validation", f"Input validation error: {message}")


def template_error(message: str) -> RequestError:
    """422: the chat template refuses the messages."""
    return RequestError(422, "template_error", f"Template error: {message}")


def tool_error(message: str) -> RequestError:
    """422: tools were asked for in a way that is not served."""
    return RequestError(422, "tool_error", f"Tool error: {message}")


def overloaded() -> RequestError:
    """429: as many requests as allowed are in flight already."""
    return RequestError(429, "overloaded", "Model is overloaded")


def generation_failed(message: str) -> RequestError:
    """424: the engine failed on this request."""
    return RequestError(424, "generation", f"Request failed during generation: {message}")


def incomplete() -> RequestError:
    """500: the engine ended without a reason."""
    return RequestError(500, "incomplete_generation", "Incomplete generation")
