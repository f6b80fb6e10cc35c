"""The only door to generation: one model behind one or several addresses, or the embedded engine
started for a while.

Takes addresses and a profile of who speaks there (TGI, vLLM, SGLang, llama.cpp, OpenAI, Inference
Providers); gives replies. `Endpoint` bears what servers do: it adapts how much it asks to what each
address answers, waits for cold starts, goes round dead addresses, and tells a request that is
refused from an endpoint that is misconfigured. `ask_all` sends it many requests at once;
`start_engine` gives addresses where there is no server."""

from hubkit.serving.client.batch import ask_all
from hubkit.serving.client.client_template import ClientTemplate
from hubkit.serving.client.dialects import PROFILES, Reply
from hubkit.serving.client.endpoint import Endpoint
from hubkit.serving.client.transport import on_loopback
from hubkit.serving.credentials import key_in
from hubkit.serving.engines.local import Engine, start_engine

__all__ = [
    "PROFILES",
    "ClientTemplate",
    "Endpoint",
    "Engine",
    "Reply",
    "ask_all",
    "key_in",
    "on_loopback",
    "start_engine",
]
