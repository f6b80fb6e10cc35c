"""What clients may send, as TGI's OpenAPI file has it; unknown keys are ignored, as there.

Sizes and types are checked here; what depends on the served model is checked in `validation`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

UInt = Annotated[int, Field(ge=0, le=2**64 - 1)]
UInt32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Texts = Annotated[
    list[str], BeforeValidator(lambda text: [text] if isinstance(text, str) else text)
]
Ids = Annotated[list[UInt32], Field(min_length=1)]


def _as_list(prompt: Any) -> Any:
    """One prompt, as a text or as token ids, as a list of one."""
    ids = isinstance(prompt, list) and bool(prompt) and all(type(i) is int for i in prompt)
    return [prompt] if ids or isinstance(prompt, str) else prompt


Prompts = Annotated[list[str | Ids], BeforeValidator(_as_list)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


class Grammar(_Request):
    """A constraint on the generated text."""

    type: Literal["json", "regex", "json_schema"]
    value: Any


class GenerateParameters(_Request):
    """TGI's own sampling parameters; see its OpenAPI file for each."""

    adapter_id: str | None = None
    best_of: UInt | None = None
    decoder_input_details: bool = False
    details: bool = True
    do_sample: bool = False
    frequency_penalty: float | None = None
    grammar: Grammar | None = None
    max_new_tokens: UInt32 | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: UInt | None = None
    stop: list[str] = []
    temperature: float | None = None
    top_k: Int32 | None = None
    top_n_tokens: UInt32 | None = None
    top_p: float | None = None
    truncate: UInt | None = None
    typical_p: float | None = None
    watermark: bool = False


class Extension(_Request):
    """What hubkit's engine takes beyond TGI's API, under the key ``hubkit``; other servers ignore
    it.

    `typed_spans` are ``[start, stop)`` character ranges of the prompt that people wrote: a control
    token spelt out in there is tokenized as ordinary text. `add_special_tokens` False leaves out
    the tokens (BOS) that the tokenizer would add, for a prompt whose template has printed them."""

    typed_spans: list[Annotated[list[UInt32], Field(min_length=2, max_length=2)]] = []
    add_special_tokens: bool = True


class GenerateRequest(_Request):
    """Body of /generate, /generate_stream, /tokenize."""

    inputs: str
    parameters: GenerateParameters = GenerateParameters()
    hubkit: Extension = Extension()


class CompatGenerateRequest(GenerateRequest):
    """Body of `/`: also says whether to stream."""

    stream: bool = False


class TextChunk(_Request):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ImageUrl(_Request):
    """Where an image is."""

    url: str


class ImageChunk(_Request):
    """An image in a message's content; a text model sees its address as markdown, as in TGI."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Request):
    """One turn of a chat."""

    role: str
    content: str | list[TextChunk | ImageChunk] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(_Request):
    """Options of a streamed chat."""

    include_usage: bool = True


class ChatRequest(_Request):
    """Body of /v1/chat/completions and /chat_tokenize."""

    messages: list[Message]
    model: str | None = None
    frequency_penalty: float | None = None
    logit_bias: Any = None  # unused, as in TGI
    logprobs: bool | None = None
    max_completion_tokens: UInt32 | None = None
    max_tokens: UInt32 | None = None
    n: UInt32 | None = None  # unused, as in TGI
    presence_penalty: float | None = None
    response_format: Grammar | None = None
    seed: UInt | None = None
    stop: Texts | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    tool_choice: Any = None
    tool_prompt: str | None = None
    tools: list[dict[str, Any]] | None = None
    top_logprobs: UInt32 | None = None
    top_p: float | None = None
    user: str | None = None  # names the dialogue, which helps to find its cached prefix


class CompletionRequest(_Request):
    """Body of /v1/completions. `prompt` is a text, token ids, or a list of either.

    `hubkit` belongs to a single prompt given as text."""

    prompt: Prompts
    model: str | None = None
    frequency_penalty: float | None = None
    hubkit: Extension = Extension()
    max_tokens: UInt32 | None = None
    repetition_penalty: float | None = None
    seed: UInt | None = None
    stop: Texts | None = None
    stream: bool = False
    suffix: str | None = None
    temperature: float | None = None
    top_p: float | None = None
