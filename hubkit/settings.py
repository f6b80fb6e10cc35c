"""Every ``HUBKIT_`` variable of the environment: its name, and what it is for.

Values are read where they are used, when they are used; a name stands here alone."""

from __future__ import annotations

import os
from typing import Final

HUB: Final = "HUBKIT_HUB"
"""``local`` (the embedded Hub, the default), or the URL of a Hub."""
UPSTREAM: Final = "HUBKIT_UPSTREAM"
"""The Hub that the embedded one reads through from: a URL, or ``off``."""
UPSTREAM_TOKEN_PATH: Final = "HUBKIT_UPSTREAM_TOKEN_PATH"
"""For the process of the embedded Hub: the file of the token for its upstream."""
NAMESPACE: Final = "HUBKIT_NAMESPACE"
"""Whose repos are made: ``local`` on the embedded Hub, else by default the token's owner."""
HOME: Final = "HUBKIT_HOME"
"""The folder of all of hubkit's files; by default ``~/.local/share/hubkit``."""
HUB_RELAYS: Final = "HUBKIT_HUB_RELAYS"
"""Reverse proxies of your own before the embedded Hub, as ``hub.example.lan`` or
``127.0.0.1:8080``, with commas between them: the Hub answers under these names too, only to those
who show a token, and its token may be sent there. None by default."""
HUB_IDLE_S: Final = "HUBKIT_HUB_IDLE_S"
"""Seconds without a request after which the embedded Hub stops, unless a process of hubkit still
uses it: 900 by default, 0 for never."""
LOG_FILE: Final = "HUBKIT_LOG_FILE"
"""A file to which every command appends what it did, as ``--log-file`` does."""
ENDPOINT_TOKEN: Final = "HUBKIT_ENDPOINT_TOKEN"
"""The bearer token that clients of a local engine, or of an environment, must send."""
ENGINE: Final = "HUBKIT_ENGINE"
"""Set for a started engine: a mark of its own, by which all that it starts is found and ended."""
RECIPE: Final = "HUBKIT_RECIPE"
"""In a Hub Job: the recipe, as JSON."""
PLUGINS: Final = "HUBKIT_PLUGINS"
"""In a Hub Job: the plug-ins that the driver had loaded, as JSON (`hubkit.plugins.snapshot`)."""
LOCAL_JOB: Final = "HUBKIT_LOCAL_JOB"
"""Set in a job that the embedded Hub runs: the loopback Hub that `HUBKIT_HUB` names is on the
owner's machine, so that what goes there does not leave it."""
BF16: Final = "HUBKIT_BF16"
"""Set in the processes of one launched training: 1 where this machine's processor is faster in
bfloat16, else 0; measured once, so that they all compute in the same."""
IMAGES: Final = "HUBKIT_IMAGES"
"""Container images of rented endpoints in place of hubkit's own, by digest for example: words such
as ``vllm=vllm/vllm-openai@sha256:…``."""
INSIDE_JOB: Final = "HUBKIT_INSIDE_JOB"
"""Set inside a Hub Job: the job's id is looked up and noted on what it makes."""


def value(name: str, default: str = "") -> str:
    """The value of a variable, without spaces around it; `default` where it is not set or empty."""
    return os.environ.get(name, "").strip() or default
