"""What is sent to create or update an endpoint: one container image per engine, and how each serves
adapters.

text-generation-inference is a custom image configured through its environment; it serves any
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

from hubkit import settings
from hubkit.cloud.prices import Hardware
from hubkit.errors import RecipeError
from hubkit.hub import Ref
from hubkit.settings import value

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
    """The endpoint that is wanted: `model` at a commit, with `adapters` of it, on `engine` and
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
        main_repo = [*self.adapters, self.model][0]
        facts = [
            self.engine,
            str(self.hardware),
            str(self.context),
            self.gguf_file,
            *map(repr, self.refs),
        ]
        if (image := image_of(self.engine)) != IMAGES[self.engine]:
            facts.append(image)
        digest = hashlib.sha256("\0".join(map(str, facts)).encode()).hexdigest()[:8]
        slug = re.sub(r"[^a-z0-9]+", "-", main_repo.repo_id.rpartition("/")[2].lower()).strip("-")
        return f"{slug[: _LONGEST_NAME - 9].strip('-')}-{digest}"

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Every repo that it reads."""
        return (self.model, *self.adapters)


def image_of(engine: Engine) -> str:
    """The container image of an engine: the one that ``HUBKIT_IMAGES`` names, else `IMAGES`.

    Raises:
        RecipeError: The variable names something else than an engine and its image.
    """
    chosen = {}
    for word in value(settings.IMAGES).split():
        name, _, image = word.partition("=")
        if name not in ENGINES or not re.fullmatch(r"[a-z0-9][\w./:@-]+", image):
            raise RecipeError(
                f"HUBKIT_IMAGES holds {word!r}; it takes words such as vllm=IMAGE@sha256:DIGEST, "
                f"for {', '.join(ENGINES)}"
            )
        chosen[name] = image
    return chosen.get(engine) or IMAGES[engine]


def payload(spec: EndpointSpec) -> Payload:
    """The arguments that create `spec`. Raises `RecipeError` for what its engine cannot serve."""
    hardware = spec.hardware
    mounted = (
        spec.adapters[0] if spec.adapters and spec.engine in ("vllm", "sglang") else spec.model
    )
    arguments = Payload(
        name=spec.name,
        repository=mounted.repo_id,
        revision=mounted.revision,
        framework="llamacpp" if spec.engine == "llamacpp" else "pytorch",
        task="text-generation",
        accelerator=hardware.accelerator,
        instance_size=hardware.instance_size,
        instance_type=hardware.instance_type,
        region=hardware.region,
        vendor=hardware.vendor,
        min_replica=0 if spec.sleep_minutes else 1,
        max_replica=spec.max_replica,
        type="authenticated",
        tags=["hubkit", *spec.tags],
    )
    if spec.sleep_minutes:
        arguments["scale_to_zero_timeout"] = spec.sleep_minutes
    build = {"tgi": _tgi, "vllm": _vllm, "sglang": _sglang, "llamacpp": _llamacpp}[spec.engine]
    return Payload(**arguments, **build(spec))


def _container(spec: EndpointSpec) -> Container:
    return Container(url=image_of(spec.engine), port=PORTS[spec.engine], healthRoute=HEALTH)


def _tgi(spec: EndpointSpec) -> Payload:
    env = {"MODEL_ID": MOUNT}
    if spec.adapters:
        env["LORA_ADAPTERS"] = ",".join(_at(adapter) for adapter in spec.adapters)
    if spec.context:
        env |= {
            "MAX_TOTAL_TOKENS": str(spec.context),
            "MAX_INPUT_TOKENS": str(spec.context - 1),
        }
    if spec.hardware.accelerators > 1:
        env["NUM_SHARD"] = str(spec.hardware.accelerators)
    return Payload(custom_image=dict(_container(spec)), env=env)


def _vllm(spec: EndpointSpec) -> Payload:
    size = ["--served-model-name", spec.model.repo_id]
    size += ["--max-model-len", str(spec.context)] if spec.context else []
    if spec.hardware.accelerators > 1:
        size += ["--tensor-parallel-size", str(spec.hardware.accelerators)]
    if not spec.adapters:
        return Payload(custom_image={"vLLM": _container(spec)}, container_args=size)
    adapter = _only_adapter(spec)
    args = [
        spec.model.repo_id,
        "--revision",
        spec.model.revision,
        "--port",
        str(PORTS["vllm"]),
        "--enable-lora",
    ]
    args += ["--max-lora-rank", "64", "--lora-modules", f"{adapter.repo_id}={MOUNT}"]
    args += ["--chat-template", f"{MOUNT}/chat_template.jinja", *size]
    return Payload(
        custom_image=dict(_container(spec)),
        container_command=["vllm", "serve"],
        container_args=args,
    )


def _sglang(spec: EndpointSpec) -> Payload:
    size = ["--served-model-name", spec.model.repo_id]
    size += ["--context-length", str(spec.context)] if spec.context else []
    if spec.hardware.accelerators > 1:
        size += ["--tp", str(spec.hardware.accelerators)]
    if not spec.adapters:
        return Payload(custom_image={"sGLang": _container(spec)}, container_args=size)
    adapter = _only_adapter(spec)
    command = ["python3", "-m", "sglang.launch_server"]
    args = [
        "--model-path",
        spec.model.repo_id,
        "--revision",
        spec.model.revision,
        "--host",
        "0.0.0.0",
    ]
    args += ["--port", str(PORTS["sglang"]), "--lora-paths", f"{adapter.repo_id}={MOUNT}"]
    args += ["--chat-template", f"{MOUNT}/chat_template.jinja", *size]
    return Payload(
        custom_image=dict(_container(spec)), container_command=command, container_args=args
    )


def _llamacpp(spec: EndpointSpec) -> Payload:
    if spec.adapters:
        raise RecipeError(
            f"llama.cpp serves one GGUF file, and {spec.adapters[0].repo_id} is an adapter; take "
            "--engine tgi or vllm, or merge it (merge_adapter: true) and convert the whole model"
        )
    if not spec.gguf_file:
        raise RecipeError(
            f"llama.cpp needs a GGUF file of {spec.model.repo_id}: name it with --gguf FILE"
        )
    container = _container(spec)
    container["modelPath"] = spec.gguf_file
    container["nParallel"] = 8
    if spec.context:
        container["ctxSize"] = spec.context * 8
    return Payload(custom_image={"llamacpp": container})


def _only_adapter(spec: EndpointSpec) -> Ref:
    if len(spec.adapters) > 1:
        names = ", ".join(adapter.repo_id for adapter in spec.adapters)
        raise RecipeError(
            f"{spec.engine} has one chat template per server and pins one mounted repo, "
            f"so one adapter per endpoint; asked for: {names}. Deploy them one by one, "
            "or together with --engine tgi"
        )
    return spec.adapters[0]


def _at(ref: Ref) -> str:
    return f"{ref.repo_id}@{ref.revision}"


def served_as(spec: EndpointSpec, ref: Ref) -> str:
    """The ``model`` (or adapter id) that a request for `ref` names at an endpoint of `spec`."""
    if ref in spec.adapters:
        return ref.repo_id
    return "tgi" if spec.engine == "tgi" else spec.model.repo_id
