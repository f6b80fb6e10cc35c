"""The client of every generation: one model behind one or several addresses, or the embedded engine
started for a while.

Takes addresses and the profile of their servers (TGI, vLLM, SGLang, llama.cpp, OpenAI and others);
gives replies. `Endpoint` absorbs what servers do: it adapts its rate to what each address answers,
waits for cold starts, avoids dead addresses, and tells a refused request from a misconfigured
endpoint. `BatchEndpoint` asks by a provider's batch API instead. `ask_all` sends many requests at
once; `start_engine` gives addresses where there is no server."""

from hubkit.serving.client.batch import ask_all
from hubkit.serving.client.batch_endpoint import BatchEndpoint
from hubkit.serving.client.batch_queue import MOST_REQUESTS
from hubkit.serving.client.client_template import ClientTemplate
from hubkit.serving.client.dialects import PROFILES
from hubkit.serving.client.endpoint import ClientLimits, Endpoint, Request, RequestOptions
from hubkit.serving.client.replies import Reply
from hubkit.serving.credentials import key_in
from hubkit.serving.engines.local import Engine, EngineSettings, start_engine

__all__ = [
    "MOST_REQUESTS",
    "PROFILES",
    "BatchEndpoint",
    "ClientLimits",
    "ClientTemplate",
    "Endpoint",
    "Engine",
    "EngineSettings",
    "Reply",
    "Request",
    "RequestOptions",
    "ask_all",
    "key_in",
    "start_engine",
]
