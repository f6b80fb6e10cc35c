"""Blocks about generation: who sits in a seat, and how two of them talk."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from hubkit.recipe.block import Block
from hubkit.recipe.identity import Content, Execution
from hubkit.recipe.source import Source
from hubkit.recipe.template_source import TemplateSource

EMBEDDED = "embedded"
DEPLOY = "deploy"
ENGINES = ("auto", "vllm", "sglang", "llamacpp", "transformers")
"""Servers that hubkit starts on this machine, for as long as a stage needs them."""
Check = Literal["empty", "cut_off", "role_leak", "repeated"]
CHECKS: tuple[Check, ...] = ("empty", "cut_off", "role_leak", "repeated")


Profile = Literal[
    "tgi", "vllm", "sglang", "llamacpp", "openai", "openai-reasoning", "claude", "mistral",
    "gemini", "grok", "ollama", "lmstudio", "transformers", "inference-providers",
]  # fmt: skip
_BATCH_PRICE_SHARE = 0.5  # OpenAI, Anthropic
_SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "cookie", "proxy-authorization")


class Sampling(Block):
    """Sampling of one seat; every value is sent, no server default is relied on. null: not sent."""

    temperature: Content[Annotated[float, Field(ge=0)] | None] = 0.7
    """0 takes the most likely token."""
    top_p: Content[Annotated[float, Field(gt=0, le=1)] | None] = 1.0
    """Share of probability that is sampled from."""
    max_tokens: Content[Annotated[int, Field(ge=1)] | None] = 512
    """Longest turn, thinking included."""
    stop: Content[list[str] | None] = Field(default_factory=list)
    """Texts that end a turn."""
    frequency_penalty: Content[float | None] = 0.0
    """As in OpenAI's API."""
    presence_penalty: Content[float | None] = 0.0
    """As in OpenAI's API."""


class Deploy(Block):
    """An Inference Endpoint for a seat whose endpoint is ``deploy``: made when needed, given back
    afterwards.
    """

    engine: Execution[Literal["tgi", "vllm", "sglang", "llamacpp"]] = "tgi"
    """What serves the model there."""
    hardware: Execution[str] = "aws-nvidia-l40s-x1"
    """A row of the price table."""
    after: Execution[Literal["pause", "delete"]] = "delete"
    """What becomes of an endpoint that the run made; one that was there is left as it was."""
    replicas: Execution[Annotated[int, Field(ge=1)]] = 1
    """Most replicas at once."""
    sleep_minutes: Execution[Annotated[int, Field(ge=0)]] = 15
    """Without a request for so long it scales to zero by itself; 0: never."""
    wait_minutes: Execution[Annotated[float, Field(gt=0)]] = 30.0
    """How long to wait until it is up."""
    gguf: Content[str | None] = None
    """The file that llama.cpp serves."""


class Engine(Block):
    """How a server that hubkit starts is run, for a seat whose endpoint is its name. It may be
    installed in any environment; base, adapters and both seats share one."""

    command: Execution[list[str]] = Field(default_factory=list)
    """The program and its first arguments (``[/opt/vllm/bin/vllm, serve]``); without it, the
    engine's own program on PATH."""
    args: Execution[list[str]] = Field(default_factory=list)
    """Further arguments, after hubkit's own, so that they win."""
    gpus: Execution[Annotated[int, Field(ge=0)] | None] = None
    """How many devices it uses; null takes all that are visible."""
    wait_minutes: Execution[Annotated[float, Field(gt=0)]] = 30.0
    """How long it may take to answer for the first time."""


class SeatConfig(Block):
    """Who sits in a seat, and at which addresses it answers."""

    endpoints: Execution[list[str]] = Field(default_factory=lambda: ["embedded"])
    """Addresses that all serve this seat's model, ``embedded``, ``deploy``, or the name of a server
    that hubkit starts here: ``vllm``, ``sglang``, ``llamacpp``, ``transformers``; ``auto`` is vLLM
    where there is a CUDA device and it is installed, else the embedded engine."""
    profile: Execution[Profile] = "tgi"
    """Whose dialect of OpenAI's API the addresses speak; it leaves out what its servers refuse."""
    repo: Content[str | None]
    """The model that they serve: ``asker`` (what this recipe trained), or a repo; null for a model
    that is no repo, whose `name` and `license` are then declared."""
    name: Content[str | None] = None
    """Declared name of a model without a repo."""
    license: Content[str | None] = None
    """Declared licence, or terms of use, of a model without a repo."""
    model: Content[str] = "tgi"
    """Name of the model in requests."""
    token_env: Execution[str | None] = None
    """Environment variable that holds the key."""
    headers: Execution[dict[str, str]] = Field(default_factory=dict)
    """More headers of every request; ``$NAME`` stands for an environment variable, and is the only
    way to give one that holds a key."""
    extra_body: Content[dict[str, Any] | None] = None
    """More keys of every request, such as ``reasoning_effort``; null as a value removes a key."""
    chat_template_kwargs: Content[dict[str, Any] | None] = None
    """Variables of the server's chat template, such as ``enable_thinking: false``."""
    template: Content[TemplateSource] = None
    """How prompts are printed, rendered here and sent as text; null: as the model's own chat
    template does. ``base``, a family's name, ``plain``, or the path of a Jinja file."""
    session_header: Execution[str | None] = None
    """Header that carries the dialogue's id, for gateways that keep a session on one server."""
    thinking: Content[Literal["keep", "drop"] | None] = None
    """Whether what the model thinks before it answers is kept in a column of its own (null: keep).
    It is never shown to the other seat, nor sent back."""
    speaks: Content[Literal["user"] | None] = None
    """``user``: the model writes people's turns under its own user header, seats not swapped; its
    prompts are rendered here. Only for the asker's seat; null: as hubkit trains an asker."""
    end_token: Content[str | None] = None
    """The token with which such a model ends a conversation, if it has one."""
    system: Content[str | None] = None
    """The seat's system message."""
    sampling: Content[Sampling] = Sampling()
    """How its turns are sampled."""
    context: Content[Annotated[int, Field(ge=1)]] = 4096
    """Its window, in tokens."""
    batch: Execution[bool] = False
    """Asks by the provider's batch API: requests go out together and are answered within a day, at
    half the prices below. For one address of profile ``openai``, ``openai-reasoning`` or
    ``claude``."""
    usd_per_million_input: Execution[Annotated[float, Field(ge=0)]] = 0.0
    """Price of prompt tokens."""
    usd_per_million_output: Execution[Annotated[float, Field(ge=0)]] = 0.0
    """Price of completion tokens."""
    usd_per_million_cached_input: Execution[Annotated[float, Field(ge=0)] | None] = None
    """Price of prompt tokens that the server had cached; null: as other prompt tokens."""
    deploy: Content[Deploy | None] = None
    """The endpoint to make, for ``deploy``."""
    engine: Execution[Engine | None] = None
    """How the server is run, for a name of one in `endpoints`."""

    @property
    def reply_tokens(self) -> int:
        """The most tokens of one answer: the window's where the recipe sets no limit."""
        return self.sampling.max_tokens or self.context

    @property
    def price_share(self) -> float:
        """The share of its prices that is paid: batches cost half."""
        return _BATCH_PRICE_SHARE if self.batch else 1.0

    @model_validator(mode="after")
    def _addresses(self) -> SeatConfig:
        if DEPLOY in self.endpoints and len(self.endpoints) > 1:
            raise ValueError(
                f"{DEPLOY!r} stands alone: hubkit makes that endpoint, its replicas are "
                "deploy.replicas"
            )
        if len(self.endpoints) > 1 and (started := set(ENGINES) & set(self.endpoints)):
            raise ValueError(
                f"{min(started)!r} stands alone: hubkit starts that server, on the devices that "
                "engine.gpus counts"
            )
        for address in self.endpoints:
            if address in (EMBEDDED, DEPLOY, *ENGINES):
                continue
            if not address.startswith(("http://", "https://")):
                raise ValueError(
                    f"{address.rpartition('@')[2]!r} is no http(s) "
                    "URL (http://127.0.0.1:8080), nor embedded, deploy "
                    f"or an engine ({', '.join(ENGINES)})"
                )
            _, at, host = urlsplit(address).netloc.rpartition("@")
            if at:
                raise ValueError(
                    f"the address of {host} holds a user name or a password, which would be "
                    "committed; leave it out and give headers: {Authorization: $NAME}, where NAME "
                    "is an environment variable"
                )
        return self

    @property
    def model_name(self) -> str:
        """Who sits here, for a reader: a repo, or a declared name."""
        return self.repo or f"{self.name} (declared; licence: {self.license})"

    @property
    def is_elsewhere(self) -> bool:
        """Whether the model answers at addresses that hubkit does not start."""
        return not {EMBEDDED, DEPLOY, *ENGINES} & set(self.endpoints)

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of which it sends the values, by its keys; none where hubkit
        starts its model."""
        if not self.is_elsewhere:
            return {}
        named = {"token_env": self.token_env} if self.token_env else {}
        return named | {
            f"headers.{name}": value[1:].strip("{}")
            for name, value in self.headers.items()
            if value.startswith("$")
        }

    @property
    def engine_kind(self) -> str | None:
        """The server that hubkit starts for this seat; None where it starts none."""
        return next((name for name in self.endpoints if name in ENGINES), None)

    @model_validator(mode="after")
    def _batches(self) -> SeatConfig:
        if self.batch and not (self.is_elsewhere and len(self.endpoints) == 1):
            raise ValueError(
                "batch: true asks by a provider's batch API; give the one address of that provider "
                "under endpoints"
            )
        return self

    @model_validator(mode="after")
    def _model(self) -> SeatConfig:
        if self.repo is None and not (self.name and self.license):
            raise ValueError(
                "repo is null: give name and license, which rows and cards then show as declared"
            )
        if self.repo is None and not self.is_elsewhere:
            raise ValueError("repo is null: give endpoints where the model answers")
        return self

    @model_validator(mode="after")
    def _speaker(self) -> SeatConfig:
        if self.end_token and self.speaks is None:
            raise ValueError(
                "end_token is of a model that speaks: user; an asker that hubkit trained ends with "
                "rollout.end_mark"
            )
        if self.speaks and self.repo in (None, "asker"):
            raise ValueError(
                "speaks: user is for a repo whose tokenizer is on the Hub, and not for the asker "
                "of this recipe; name it as repo"
            )
        return self

    @model_validator(mode="after")
    def _secrets(self) -> SeatConfig:
        for name, value in self.headers.items():
            if name.lower() in _SECRET_HEADERS and not value.startswith("$"):
                raise ValueError(
                    f"headers.{name} would be committed with the recipe; "
                    "write $NAME, where NAME is an environment variable that holds it"
                )
        return self


class Turns(Block):
    """Human turns per dialogue."""

    kind: Content[Literal["fixed", "choice"]] = "fixed"
    """The same for all, or drawn."""
    value: Content[Annotated[int, Field(ge=1)]] = 8
    """Human turns, opening included, where fixed."""
    weights: Content[dict[int, float]] = Field(default_factory=dict)
    """Weight per number of human turns, where drawn."""


class Baseline(Block):
    """What the asker's dialogues are compared with: the chat model plays the user, in its own seat,
    over the same openings, with the asker's sampling and the rollout's turns and checks."""

    dialogues: Content[Annotated[int, Field(ge=1)]]
    """How many."""
    system: Content[str]
    """Tells the model to play the user."""


class Rollout(Block):
    """Two endpoints in conversation."""

    mode: Content[Literal["seeded", "seeded_qa", "free", "intent"]] = "seeded"
    """``seeded`` opens with a held-out first turn, ``seeded_qa`` with a question and its answer
    where the opening has one, ``free`` with nothing but the asker's system message, ``intent`` with
    that and one of `intents`."""
    intents: Content[list[str]] = Field(default_factory=list)
    """What askers may want, one drawn per dialogue."""
    personas: Content[list[str]] = Field(default_factory=list)
    """Who askers may be, one drawn per dialogue."""
    end_mark: Content[str | None] = None
    """Text with which the asker was trained to end."""
    context_full: Content[Literal["trim", "end"]] = "trim"
    """Whether a dialogue that outgrows a window loses its oldest exchanges from what is sent, or
    ends.
    """
    dialogues: Content[Annotated[int, Field(ge=1)]]
    """How many; where there are fewer openings, each opens several, with other seeds."""
    openings: Content[list[Source]] = Field(default_factory=list)
    """Not used: dialogues are opened from the corpus alone, and any source here is refused."""
    turns: Content[Turns] = Turns()
    """Human turns per dialogue."""
    asker: Content[SeatConfig]
    """The seat that asks."""
    chat: Content[SeatConfig]
    """The seat that answers."""
    in_flight: Execution[Annotated[int, Field(ge=1)]] = 64
    """Most dialogues at work at once."""
    max_opening_chars: Content[Annotated[int, Field(ge=1)]] = 4000
    """Longer openings are passed over."""
    shard_dialogues: Execution[Annotated[int, Field(ge=1)]] = 1000
    """Dialogues per shard; each goes to the Hub when it is full."""
    shard_minutes: Execution[Annotated[float, Field(gt=0)]] = 10.0
    """Longest time until what has ended is in a shard, and on the Hub."""
    lease_minutes: Execution[Annotated[float, Field(gt=0)]] = 15.0
    """How long another machine must wait after one was lost; clocks must agree to a tenth of it."""
    on: Execution[Literal["here", "ray"]] = "here"
    """Whether it is driven by one process, or over a Ray cluster (``hubkit-simulators[ray]``)."""
    workers: Execution[Annotated[int, Field(ge=1)] | None] = None
    """Parts into which a cluster deals it out; one a node, unless said."""
    retries_per_turn: Content[Annotated[int, Field(ge=0)]] = 2
    """How often a turn that fails a check is asked for again."""
    retry_on: Content[list[Check]] = Field(default_factory=lambda: list(CHECKS))
    """The checks after which it is."""
    repeat_temperature_step: Content[Annotated[float, Field(gt=0)] | None] = None
    """Added to the asker's temperature for each attempt at a turn that repeated an earlier one."""
    refusals: Content[Literal["turn", "failure"] | None] = None
    """Whether an answer that its server marks as a refusal is a turn (null: it is), or a failed
    attempt.
    """
    request_timeout_s: Execution[Annotated[float, Field(gt=0)]] = 300.0
    """Longest wait for one answer."""
    patience_s: Execution[Annotated[float, Field(gt=0)]] = 900.0
    """How long to wait while none of a seat's addresses answers."""
    fsync: Execution[Literal["turn", "interval"]] = "turn"
    """``turn`` syncs the journal to disk before a dialogue continues (many turns share one sync),
    ``interval`` writes it before and syncs once a second."""
    baseline: Content[Baseline | None] = None
    """Some of the openings, also rolled out with an untrained model in the asker's seat."""
    budget_usd: Execution[Annotated[float, Field(ge=0)] | None] = None
    """Cap on money over both seats and all sessions."""
    budget_tokens: Execution[Annotated[int, Field(ge=1)] | None] = None
    """Cap on tokens, in and out."""
    max_hours: Execution[Annotated[float, Field(ge=0)] | None] = None
    """Cap on hours of driving."""

    @model_validator(mode="after")
    def _opened_by_the_corpus(self) -> Rollout:
        if self.openings:
            raise ValueError(
                "openings names sources, and dialogues are opened from the corpus alone: put them "
                "under corpus.sources"
            )
        return self

    @model_validator(mode="after")
    def _asker(self) -> Rollout:
        if self.asker.repo is None:
            raise ValueError(
                "asker.repo is null: only the chat seat may have a model without a repo"
            )
        if self.chat.speaks:
            raise ValueError("chat.speaks is user: such a model can only sit in the asker's seat")
        return self

    @property
    def seats(self) -> dict[str, SeatConfig]:
        """Who sits where: ``user`` is the asker, ``assistant`` the chat model."""
        return {"user": self.asker, "assistant": self.chat}
