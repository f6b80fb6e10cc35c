"""The only door to generation: one model behind one or several addresses, or the embedded engine started for a while.

Takes addresses and a profile of who speaks there (TGI, vLLM, SGLang, llama.cpp, OpenAI, Inference Providers); gives
replies. `Endpoint` bears what servers do: it adapts how much it asks to what each address answers, waits for cold
starts, goes round dead addresses, and tells a request that is refused from an endpoint that is misconfigured.
`ask_all` sends it many requests at once; `start_engine` gives addresses where there is no server.
"""

from hubkit.endpoint.client import on_loopback
from hubkit.endpoint.endpoint import Endpoint
from hubkit.endpoint.engine import Engine, start_engine
from hubkit.endpoint.key import key_in
from hubkit.endpoint.many import ask_all
from hubkit.endpoint.render import ClientTemplate
from hubkit.endpoint.wire import PROFILES, Reply

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
