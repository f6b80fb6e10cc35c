"""The only door to a Hub: which one is configured, how to reach it, how to read a revision and make
one commit.

Takes settings from the environment; gives a `Hub`, whose every call is `huggingface_hub`'s with an
explicit endpoint. The embedded Hub is one more URL here: `connect` starts it when the configuration
points to it, and it stops when idle.

    HUBKIT_HUB        ``local`` (default: the embedded Hub), or a URL such as https://huggingface.co
    HUBKIT_NAMESPACE  the owner of new repos; default: ``local`` on the embedded Hub, else the
                      token's owner
    HUBKIT_UPSTREAM   the Hub that the embedded one reads through, or ``off``; default:
                      https://huggingface.co
    HUBKIT_HOME       where hubkit keeps its files; default ~/.local/share/hubkit
"""

from hubkit.hub.client import Hub, Ref, connect, connect_to
from hubkit.hub.embedded import environment
from hubkit.hub.load import load_dataset
from hubkit.hub.places import home, local_root

__all__ = [
    "Hub",
    "Ref",
    "connect",
    "connect_to",
    "environment",
    "home",
    "load_dataset",
    "local_root",
]
