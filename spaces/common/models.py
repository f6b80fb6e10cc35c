"""Where the words come from: an endpoint that a variable names, or the model inside this Space.

``stream(model, messages, …)`` yields `Piece`s: text as it is written, or a status while an endpoint
wakes up. Variables (Settings → Variables and secrets): ``ASKER_ENDPOINT``, ``CHAT_ENDPOINT``,
``BASE_ENDPOINT`` hold the URL of an endpoint that speaks OpenAI-style chat completions (TGI, vLLM,
SGLang, llama.cpp); the secret ``ENDPOINT_TOKEN`` its token; ``<NAME>_MODEL`` the model it should be
asked for, when it serves several."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

try:  # on ZeroGPU this must come before torch; anywhere else it is absent or does nothing
    from spaces import GPU

    on_gpu = GPU(duration=60)
except ImportError:

    def on_gpu(function: Any) -> Any:
        """Nothing to borrow a GPU from."""
        return function


WAIT_S = float(
    os.environ.get("ENDPOINT_WAIT_S", "300")
)  # how long a sleeping endpoint is waited for
_ASLEEP = {502, 503, 504}  # what an endpoint that is scaled to zero answers while it starts
_BUSY = 429


class ModelError(Exception):
    """What went wrong, as one sentence for the person at the page."""


@dataclass(frozen=True)
class Piece:
    """A bit of an answer: more `text`, or a `status` to show while there is none. `is_cut`, at the
    end: the answer reached its longest length, and is not whole.
    """

    text: str = ""
    status: str = ""
    is_cut: bool = False


@dataclass(frozen=True)
class Model:
    """One model as ``space.json`` describes it. `role` names its variables: asker, chat or base."""

    role: str
    name: str
    repo_id: str
    base: str
    adapter: bool
    system: str | None = None
    end_mark: str | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256

    @property
    def endpoint(self) -> str:
        """The URL from this model's variable, or ''."""
        return os.environ.get(f"{self.role.upper()}_ENDPOINT", "").rstrip("/")

    @property
    def link(self) -> str:
        """Its repo's name, with a link to its page; as Markdown."""
        return _link(self.repo_id)

    @property
    def about(self) -> str:
        """What it is, with links to it and its base, its size where the base's name has it, and
        where it runs; as Markdown.
        """
        size = re.search(r"(?<![\w.])\d+(\.\d+)?[MB](?!\w)", self.base.rpartition("/")[2], re.I)
        parameters = f" ({size[0].upper()} parameters)" if size else ""
        trained = "an adapter of" if self.adapter else "trained from"
        what = self.link
        if self.repo_id != self.base:
            what += f", {trained} {_link(self.base)}"
        return f"{what}{parameters}, {self.where}"

    @property
    def where(self) -> str:
        """Where it runs, in words."""
        return "on an endpoint" if self.endpoint else "in this Space"


def _link(repo_id: str) -> str:
    return f"[{repo_id}]({page_of(repo_id)})"


def page_of(path: str) -> str:
    """The page of a model, or of ``datasets/…``, on the Hub that this Space reads from."""
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{hub.rstrip('/')}/{path}"


def settings() -> dict[str, Any]:
    """What ``space.json`` beside this file says."""
    return dict(json.loads(Path(__file__).with_name("space.json").read_text("utf-8")))


def model(role: str, values: dict[str, Any] | None = None) -> Model:
    """The model of ``space.json`` in `role`; ``base`` is what the chat model was trained from, in
    its seat.
    """
    values = values or settings()
    if role == "base":
        trained = model("chat", values)
        return replace(trained, role="base", name="its base", repo_id=trained.base, adapter=False)
    return Model(role=role, **values[role])


def stream(
    model: Model,
    messages: list[dict[str, str]],
    *,
    temperature: float,
    top_p: float,
    max_tokens: int,
) -> Iterator[Piece]:
    """The model's next turn, piece by piece. Raises `ModelError`, whose text is for people."""
    messages = [{"role": m["role"], "content": m["content"]} for m in messages]
    if model.system and not any(m["role"] == "system" for m in messages):
        messages = [{"role": "system", "content": model.system}, *messages]
    ask = _from_endpoint if model.endpoint else _from_here
    return ask(model, messages, temperature=temperature, top_p=top_p, max_tokens=int(max_tokens))


# An endpoint


def _from_endpoint(
    model: Model, messages: list[dict[str, str]], **sampling: Any
) -> Iterator[Piece]:
    """Ask the endpoint; while it sleeps, say so and wait; when it breaks off in the middle, say
    that.
    """
    started = time.monotonic()
    pause_s = 1.0
    while True:
        wrote = False
        try:
            for piece in _completion(model, messages, **sampling):
                wrote = True
                yield piece
            return
        except _NotYet as reason:
            waited_s = time.monotonic() - started
            if wrote:
                raise ModelError(
                    f"{model.name}'s endpoint broke off in the middle. Try again."
                ) from None
            if waited_s + pause_s > WAIT_S:
                raise ModelError(
                    f"{model.name}'s endpoint does not answer ({reason}), after {waited_s:.0f} "
                    f"seconds. "
                    "It may be paused or switched off; try again later."
                ) from None
            yield Piece(
                status=f"{model.name}'s endpoint is {reason}; waiting for it ({waited_s:.0f} s) …"
            )
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 10.0)


class _NotYet(Exception):
    """An endpoint that may answer later; its text says why not now."""


def _completion(model: Model, messages: list[dict[str, str]], **sampling: Any) -> Iterator[Piece]:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

    name = os.environ.get(f"{model.role.upper()}_MODEL", "tgi")
    greedy = sampling["temperature"] <= 0
    try:
        # Leaving the block closes the connection, which is how an endpoint learns that nobody reads
        # on.
        with InferenceClient(base_url=_base_url(model), token=_token(model), timeout=60) as client:
            for part in client.chat_completion(
                messages,
                model=name,
                stream=True,
                max_tokens=sampling["max_tokens"],
                temperature=0.0 if greedy else sampling["temperature"],
                top_p=None if greedy or sampling["top_p"] >= 1 else sampling["top_p"],
            ):
                if part.choices and part.choices[0].delta.content:
                    yield Piece(part.choices[0].delta.content)
                if part.choices and part.choices[0].finish_reason == "length":
                    yield Piece(is_cut=True)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in _ASLEEP:
            raise _NotYet("asleep or starting") from None
        if status == _BUSY:
            raise _NotYet("busy") from None
        raise ModelError(_refusal(model, status)) from None
    except (InferenceTimeoutError, ConnectionError, TimeoutError) as error:
        raise _NotYet("not reachable") from error
    except Exception as error:
        # The HTTP library is huggingface_hub's own choice; its transport errors share a root that
        # we can name by it.
        if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
            raise _NotYet("not reachable") from error
        raise


def _base_url(model: Model) -> str:
    return f"{model.endpoint.removesuffix('/v1')}/v1"


def _token(model: Model) -> str:
    """The endpoint's own token; HF_TOKEN goes to Hugging Face's endpoints and nowhere else."""
    host = urlsplit(model.endpoint).hostname or ""
    is_hugging_face = host.endswith((".huggingface.cloud", ".huggingface.co", ".hf.jobs"))
    return (
        os.environ.get("ENDPOINT_TOKEN")
        or (os.environ.get("HF_TOKEN") if is_hugging_face else None)
        or "none"
    )


def _refusal(model: Model, status: int | None) -> str:
    if status in (401, 403):
        return f"{model.name}'s endpoint wants a token; set the secret ENDPOINT_TOKEN."
    if status == 413 or status == 422:
        return (
            f"{model.name} cannot take this conversation: it is too long, or a setting is "
            f"out of range."
        )
    return f"{model.name}'s endpoint answered with an error ({status})."


# Inside this Space


class _Weights:
    """A base model in memory, once, with the adapters of everyone who shares it. One answer at a
    time.
    """

    _all: ClassVar[dict[str, _Weights]] = {}
    _loading = threading.Lock()

    def __init__(self, repo_id: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.lock = threading.Lock()
        self.device = (
            "cuda" if torch.cuda.is_available() or os.environ.get("SPACES_ZERO_GPU") else "cpu"
        )
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.model: Any = (
            AutoModelForCausalLM.from_pretrained(repo_id, dtype=dtype, trust_remote_code=False)
            .to(self.device)
            .eval()
        )
        self.adapters: set[str] = set()

    @classmethod
    def of(cls, model: Model) -> _Weights:
        """The weights behind `model`, loaded at first use."""
        repo_id = model.base if model.adapter else model.repo_id
        with cls._loading:
            if repo_id not in cls._all:
                cls._all[repo_id] = cls(repo_id)
            weights = cls._all[repo_id]
            if model.adapter and model.role not in weights.adapters:
                weights.add(model)
        return weights

    def add(self, model: Model) -> None:
        """Attach an adapter under the model's role."""
        from peft import PeftModel

        with self.lock:
            if self.adapters:
                self.model.load_adapter(model.repo_id, adapter_name=model.role)
            else:
                self.model = PeftModel.from_pretrained(
                    self.model, model.repo_id, adapter_name=model.role
                ).eval()
            self.adapters.add(model.role)

    def as_(self, model: Model) -> Any:
        """A context in which the weights are `model`'s: its adapter on, or none."""
        if model.adapter:
            self.model.set_adapter(model.role)
            return nullcontext()
        return self.model.disable_adapter() if self.adapters else nullcontext()


def prepare(*models: Model) -> None:
    """On ZeroGPU, load what runs in this Space before its page opens: a GPU is lent to what is in
    memory by then.
    """
    if os.environ.get("SPACES_ZERO_GPU"):
        for model in models:
            if not model.endpoint:
                _Weights.of(model)


def _from_here(model: Model, messages: list[dict[str, str]], **sampling: Any) -> Iterator[Piece]:
    yield Piece(
        status=f"{model.name} is getting ready …"
    )  # before torch is imported, which takes seconds

    from transformers import AutoTokenizer

    try:
        weights = _Weights.of(model)
        tokenizer = AutoTokenizer.from_pretrained(model.repo_id, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = "is the repo public, or HF_TOKEN set?"
        if "trust_remote_code" in str(error):
            reason = "it needs Python code of its own repo, which this Space does not run"
        raise ModelError(
            f"{model.name} could not be loaded from {model.repo_id}; {reason}"
        ) from error
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    if len(prompt) + sampling["max_tokens"] > weights.model.config.max_position_embeddings:
        raise ModelError(
            f"This conversation is longer than {model.name} can read. Start a new one."
        )
    yield from _generate(model, prompt, **sampling)


@on_gpu
def _generate(model: Model, prompt: list[int], **sampling: Any) -> Iterator[Piece]:
    """Run ``generate`` in a thread and hand on what it streams; stops when the reader stops
    reading.
    """
    import torch
    from transformers import (
        AutoTokenizer,
        StoppingCriteria,
        StoppingCriteriaList,
        TextIteratorStreamer,
    )

    weights = _Weights.of(model)
    tokenizer = AutoTokenizer.from_pretrained(model.repo_id, trust_remote_code=False)
    inputs = torch.tensor([prompt], device=weights.device)
    stopped = threading.Event()

    class Stopped(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full(
                (input_ids.shape[0],), stopped.is_set(), device=input_ids.device, dtype=torch.bool
            )

    streamer = TextIteratorStreamer(
        tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=120
    )
    greedy = sampling["temperature"] <= 0
    sampling_options = (
        {} if greedy else {"temperature": sampling["temperature"], "top_p": sampling["top_p"]}
    )
    failure: list[Exception] = []
    outcome: list[list[int]] = []

    def run() -> None:
        try:
            with torch.inference_mode(), weights.lock, weights.as_(model):
                output = weights.model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    **sampling_options,
                    do_sample=not greedy,
                    max_new_tokens=sampling["max_tokens"],
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([Stopped()]),
                )
            outcome.append(output[0, len(prompt) :].tolist())
        except Exception as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        for text in streamer:
            if text:
                yield Piece(text=text)
    finally:
        stopped.set()
        thread.join(timeout=30)
    if failure:
        raise ModelError(
            f"{model.name} failed while it was writing ({type(failure[0]).__name__})."
        ) from failure[0]
    ends = weights.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    if outcome and len(outcome[0]) >= sampling["max_tokens"] and outcome[0][-1] not in ends:
        yield Piece(is_cut=True)
