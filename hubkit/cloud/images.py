"""What is sent to create or update an endpoint: one container image per engine, and how each serves
adapters.

text-generation-inference is a custom image whose settings stand in its environment; it serves any
number of adapters of one base (``LORA_ADAPTERS``), each called by its repo's id in a request's
``adapter_id``. vLLM and SGLang are images that the service manages; for an adapter they are started
by us, with the adapter's repo mounted at ``/repository``, so that its revision is pinned and its
own chat template is the server's. llama.cpp serves a GGUF file of a whole model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from hubkit.cloud.prices import Hardware
from hubkit.errors import RecipeError
from hubkit.hub import Ref

Engine = Literal["tgi", "vllm", "sglang", "llamacpp"]
ENGINES: tuple[Engine, ...] = ("tgi", "vllm", "sglang", "llamacpp")
IMAGES: Mapping[Engine, str] = {
    "tgi": "ghcr.io/huggingface/text-generation-inference:3.3.7",
    "vllm": "vllm/vllm-openai:v0.23.0",
    "sglang": "lmsysorg/sglang:v0.5.9",
    "llamacpp": "ghcr.io/ggml-org/llama.cpp:server-cuda",
}
PORTS: Mapping[Engine, int] = {"tgi": 80, "vllm": 8000, "sglang": 30000, "llamacpp": 8080}
HEALTH = "/health"
MOUNT = "/repository"
"""Where the service mounts an endpoint's repository."""

_LONGEST_NAME = 32


class Container(TypedDict, total=False):
    """One variant of the union ``model.image``."""

    url: str
    port: int
    healthRoute: str
    modelPath: str
    ctxSize: int
    nParallel: int


class Payload(TypedDict, total=False):
    """Arguments of `HfApi.create_inference_endpoint`, without its namespace, token and secrets."""

    name: str
    repository: str
    revision: str
    framework: str
    task: str
    accelerator: str
    instance_size: str
    instance_type: str
    region: str
    vendor: str
    min_replica: int
    max_replica: int
    scale_to_zero_timeout: int
    custom_image: dict[str, Any]
    container_command: list[str]
    container_args: list[str]
    env: dict[str, str]
    type: str
    tags: list[str]


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """An endpoint as somebody wants it: `model` at a commit, with `adapters` of it, on `engine` and
    `hardware`.

    `context` is the most tokens of a sequence, `gguf_file` the file of a llama.cpp endpoint.
    `sleep_minutes` without a request end in no replica and no cost (0: never)."""

    model: Ref
    engine: Engine
    hardware: Hardware
    adapters: tuple[Ref, ...] = ()
    context: int | None = None
    gguf_file: str | None = None
    sleep_minutes: int = 15
    max_replica: int = 1
    called: str = ""
    tags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The endpoint's name: as `called`, else one that says what it serves and is the same for
        the same settings.
        """
        if self.called:
            return self.called
        served = [*self.adapters, self.model][0]
        facts = [
            self.engine,
            str(self.hardware),
            str(self.context),
            self.gguf_file,
            *map(repr, self.refs),
        ]
        digest = hashlib.sha256("\0".join(map(str, facts)).encode()).hexdigest()[:8]
        slug = re.sub(r"[^a-z0-9]+", "-", served.repo_id.rpartition("/")[2].lower()).strip("-")
        return f"{slug[: _LONGEST_NAME - 9].strip('-')}-{digest}"

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Every repo that it reads."""
        return (self.model, *self.adapters)


def payload(wanted: EndpointSpec) -> Payload:
    """The arguments that create `wanted`. Raises `RecipeError` for what its engine cannot serve."""
    hardware = wanted.hardware
    mounted = (
        wanted.adapters[0]
        if wanted.adapters and wanted.engine in ("vllm", "sglang")
        else wanted.model
    )
    made = Payload(
        name=wanted.name,
        repository=mounted.repo_id,
        revision=mounted.revision,
        framework="llamacpp" if wanted.engine == "llamacpp" else "pytorch",
        task="text-generation",
        accelerator=hardware.accelerator,
        instance_size=hardware.instance_size,
        instance_type=hardware.instance_type,
        region=hardware.region,
        vendor=hardware.vendor,
        min_replica=0 if wanted.sleep_minutes else 1,
        max_replica=wanted.max_replica,
        type="authenticated",
        tags=["hubkit", *wanted.tags],
    )
    if wanted.sleep_minutes:
        made["scale_to_zero_timeout"] = wanted.sleep_minutes
    build = {"tgi": _tgi, "vllm": _vllm, "sglang": _sglang, "llamacpp": _llamacpp}[wanted.engine]
    return Payload(**made, **build(wanted))


def _container(wanted: EndpointSpec) -> Container:
    return Container(url=IMAGES[wanted.engine], port=PORTS[wanted.engine], healthRoute=HEALTH)


def _tgi(wanted: EndpointSpec) -> Payload:
    env = {"MODEL_ID": MOUNT}
    if wanted.adapters:
        env["LORA_ADAPTERS"] = ",".join(_at(adapter) for adapter in wanted.adapters)
    if wanted.context:
        env |= {
            "MAX_TOTAL_TOKENS": str(wanted.context),
            "MAX_INPUT_TOKENS": str(wanted.context - 1),
        }
    if wanted.hardware.accelerators > 1:
        env["NUM_SHARD"] = str(wanted.hardware.accelerators)
    return Payload(custom_image=dict(_container(wanted)), env=env)


def _vllm(wanted: EndpointSpec) -> Payload:
    size = ["--served-model-name", wanted.model.repo_id]
    size += ["--max-model-len", str(wanted.context)] if wanted.context else []
    if wanted.hardware.accelerators > 1:
        size += ["--tensor-parallel-size", str(wanted.hardware.accelerators)]
    if not wanted.adapters:
        return Payload(custom_image={"vLLM": dict(_container(wanted))}, container_args=size)
    adapter = _only_adapter(wanted)
    args = [
        wanted.model.repo_id,
        "--revision",
        wanted.model.revision,
        "--port",
        str(PORTS["vllm"]),
        "--enable-lora",
    ]
    args += ["--max-lora-rank", "64", "--lora-modules", f"{adapter.repo_id}={MOUNT}"]
    args += ["--chat-template", f"{MOUNT}/chat_template.jinja", *size]
    return Payload(
        custom_image=dict(_container(wanted)),
        container_command=["vllm", "serve"],
        container_args=args,
    )


def _sglang(wanted: EndpointSpec) -> Payload:
    size = ["--served-model-name", wanted.model.repo_id]
    size += ["--context-length", str(wanted.context)] if wanted.context else []
    if wanted.hardware.accelerators > 1:
        size += ["--tp", str(wanted.hardware.accelerators)]
    if not wanted.adapters:
        return Payload(custom_image={"sGLang": dict(_container(wanted))}, container_args=size)
    adapter = _only_adapter(wanted)
    command = ["python3", "-m", "sglang.launch_server"]
    args = [
        "--model-path",
        wanted.model.repo_id,
        "--revision",
        wanted.model.revision,
        "--host",
        "0.0.0.0",
    ]
    args += ["--port", str(PORTS["sglang"]), "--lora-paths", f"{adapter.repo_id}={MOUNT}"]
    args += ["--chat-template", f"{MOUNT}/chat_template.jinja", *size]
    return Payload(
        custom_image=dict(_container(wanted)), container_command=command, container_args=args
    )


def _llamacpp(wanted: EndpointSpec) -> Payload:
    if wanted.adapters:
        raise RecipeError(
            f"llama.cpp serves one GGUF file, and {wanted.adapters[0].repo_id} is an adapter; take --engine tgi or "
            "vllm, or merge it (merge_adapter: true) and convert the whole model"
        )
    if not wanted.gguf_file:
        raise RecipeError(
            f"llama.cpp needs a GGUF file of {wanted.model.repo_id}: name it with --gguf FILE"
        )
    container = _container(wanted)
    container["modelPath"] = wanted.gguf_file
    container["nParallel"] = 8
    if wanted.context:
        container["ctxSize"] = wanted.context * 8
    return Payload(custom_image={"llamacpp": dict(container)})


def _only_adapter(wanted: EndpointSpec) -> Ref:
    if len(wanted.adapters) > 1:
        names = ", ".join(adapter.repo_id for adapter in wanted.adapters)
        raise RecipeError(
            f"{wanted.engine} has one chat template per server and pins one mounted repo, so one adapter per endpoint; "
            f"asked for: {names}. Deploy them one by one, or together with --engine tgi"
        )
    return wanted.adapters[0]


def _at(ref: Ref) -> str:
    return f"{ref.repo_id}@{ref.revision}"


def served_as(wanted: EndpointSpec, ref: Ref) -> str:
    """The ``model`` (or adapter id) that a request for `ref` names at an endpoint of `wanted`."""
    if ref in wanted.adapters:
        return ref.repo_id
    return "tgi" if wanted.engine == "tgi" else wanted.model.repo_id
