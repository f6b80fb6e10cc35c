"""A Slurm job out of a training command: the same command on the nodes of an allocation, and on
again after its time.

Takes the command and how it is to be spread; gives the text of a batch script.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources

from hubkit.errors import RecipeError
from hubkit.training.launch import Launch

_WARNING_S = 300


def script(
    command: Sequence[str],
    how: Launch,
    *,
    name: str,
    home: str,
    environment: Mapping[str, str],
    hours: int = 24,
) -> str:
    """The batch script that runs `command` on ``how.nodes`` nodes with ``how.processes`` GPUs each.

    `home` is the folder that all nodes must share; `environment` is set in the job (no secrets: it
    is a plain file). Raises `RecipeError` when `how` does not say how many processes a node has:
    that cannot be seen from here."""
    import jinja2

    if how.processes is None:
        raise RecipeError(
            "--slurm needs the number of GPUs on each node, for example --processes 8"
        )
    source = (resources.files("hubkit") / "training" / "slurm.sh.jinja").read_text("utf-8")
    text = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    return (
        text.from_string(source).render(
            summary=f"{how.nodes} x {how.processes} processes, {how.strategy}",
            name=re.sub(r"[^A-Za-z0-9_.-]", "-", name),
            home=_line(home),
            nodes=how.nodes,
            processes=how.processes,
            hours=hours,
            warning_s=_WARNING_S,
            environment=[(key, shlex.quote(value)) for key, value in sorted(environment.items())],
            command=shlex.join(command),
        )
        + "\n"
    )


def _line(text: str) -> str:
    """`text` as a comment may hold it: on one line."""
    return " ".join(text.split())
