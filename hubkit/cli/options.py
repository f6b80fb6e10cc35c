"""Option groups: a command takes dataclasses, the command line their fields."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` one option for each field of the dataclasses that it takes.

    A field's annotation is what typer reads (``Annotated[int, typer.Option(…)]``). Fields without a
    default come first, as arguments do."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        annotations = get_type_hints(groups[name], include_extras=True)
        for entry in fields(groups[name]):
            default = entry.default if entry.default is not MISSING else inspect.Parameter.empty
            if entry.default_factory is not MISSING:
                default = entry.default_factory()
            parameters.append(
                inspect.Parameter(
                    entry.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=annotations[entry.name],
                )
            )
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        built = {
            name: group(**{entry.name: values.pop(entry.name) for entry in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **built)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat
