"""A trained seat reads what it was trained on, on every server: proven, or rendered here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.mock_endpoint import Handle, mock

from hubkit.errors import MisconfiguredEndpointError
from hubkit.recipe import Sampling
from hubkit.serving.client import ClientTemplate, Endpoint

SOURCE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEMPLATE = ClientTemplate(SOURCE, {"bos_token": "<s>", "eos_token": "</s>"}, stops=["</s>"])
MESSAGES = [{"role": "system", "content": "You ask."}, {"role": "user", "content": "Hello."}]


def ask(server: Handle, profile: str, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """One request with the template; what was adapted, and the body of the request."""

    async def go() -> list[str]:
        sampling = Sampling().model_dump()
        async with Endpoint(
            [server.url], profile=profile, model="asker", sampling=sampling, template=TEMPLATE,
            name="asker", **options,
        ) as endpoint:  # fmt: skip
            await endpoint.chat(MESSAGES, seed=3, key="d1")
            return endpoint.adaptations

    return asyncio.run(go()), server.ledger()[-1]["body"]


@pytest.mark.parametrize("profile", ["vllm", "sglang", "llamacpp", "tgi"])
def test_a_server_that_renders_the_same_is_asked_as_chat(profile: str) -> None:
    with mock(renders="same") as server:
        adaptations, body = ask(server, profile)
    assert adaptations == [] and body["messages"] == MESSAGES and body["user"] == "d1-asker"


@pytest.mark.parametrize("renders", ["swapped", ""])
@pytest.mark.parametrize("profile", ["vllm", "sglang", "llamacpp", "tgi"])
def test_one_that_swaps_the_labels_or_cannot_say_gets_the_rendered_text(
    profile: str, renders: str
) -> None:
    with mock(renders=renders) as server:
        adaptations, body = ask(server, profile)
    prompt = body["inputs"] if profile == "tgi" else body["prompt"]
    start = "" if renders else "<s>"  # the server adds it, where it can show that it does
    assert prompt == f"{start}[system]You ask.[user]Hello.[assistant]"
    assert adaptations == ["asker: prompts are rendered here and sent as text"]
    parameters = body.get("parameters", body)
    assert parameters["stop"] == ["</s>"] and parameters["seed"] == 3
    assert parameters["max_new_tokens" if profile == "tgi" else "max_tokens"] == 512


def test_a_server_that_takes_no_text_and_proves_nothing_stops_the_run() -> None:
    with (
        mock(renders="swapped") as server,
        pytest.raises(MisconfiguredEndpointError, match="cannot show how it renders"),
    ):
        ask(server, "openai")
