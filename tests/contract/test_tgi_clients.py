"""The clients that people have, driving the embedded engine."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.engine_server import Running, shared_engine

PROMPT = "The capital of France is"
HELLO = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="session")
def engine() -> Running:
    return shared_engine()


class TestTextGeneration:
    """`text-generation` 0.7.0. Its streamed chat cannot work with any server: it parses `[DONE]` as
    JSON.
    """

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip(
            "text_generation", reason="installed by `make install`, without its dependencies"
        )

    def test_generate(self, engine: Running) -> None:
        from text_generation import Client

        response = Client(engine.url(), timeout=240).generate(
            PROMPT, max_new_tokens=8, decoder_input_details=True
        )
        assert "Paris" in response.generated_text
        assert response.details.generated_tokens == len(response.details.tokens) == 8
        assert "".join(token.text for token in response.details.prefill) == PROMPT
        assert response.details.finish_reason.value == "length"

    def test_generate_stream(self, engine: Running) -> None:
        from text_generation import Client

        client = Client(engine.url(), timeout=240)
        events = list(client.generate_stream(PROMPT, max_new_tokens=8))
        assert "".join(event.token.text for event in events) == events[-1].generated_text
        assert events[-1].generated_text == client.generate(PROMPT, max_new_tokens=8).generated_text

    def test_stop_and_best_of(self, engine: Running) -> None:
        from text_generation import Client

        client = Client(engine.url(), timeout=240)
        response = client.generate(PROMPT, max_new_tokens=30, stop_sequences=["Paris"])
        assert response.generated_text.endswith("Paris")
        assert response.details.finish_reason.value == "stop_sequence"
        response = client.generate(
            PROMPT, max_new_tokens=4, best_of=2, do_sample=True, temperature=0.8
        )
        assert len(response.details.best_of_sequences) == 1

    def test_chat(self, engine: Running) -> None:
        from text_generation import Client

        response = Client(engine.url(), timeout=240).chat(HELLO, max_tokens=12, seed=1)
        assert response.choices[0].message.content
        assert response.choices[0].finish_reason in ("stop", "length")

    def test_errors_become_its_exceptions(self, engine: Running) -> None:
        from text_generation import Client
        from text_generation.errors import ValidationError

        with pytest.raises(ValidationError, match="must be <= 1024"):
            Client(engine.url(), timeout=240).generate(PROMPT, max_new_tokens=5000)

    def test_async(self, engine: Running) -> None:
        from text_generation import AsyncClient

        async def both() -> tuple[str, str, str]:
            client = AsyncClient(engine.url(), timeout=240)
            whole = await client.generate(PROMPT, max_new_tokens=8)
            pieces = [
                event.token.text async for event in client.generate_stream(PROMPT, max_new_tokens=8)
            ]
            chat = await client.chat(HELLO, max_tokens=4)
            return whole.generated_text, "".join(pieces), chat.choices[0].message.content

        whole, streamed, chat = asyncio.run(both())
        assert whole == streamed
        assert chat


class TestHubInference:
    """`huggingface_hub`'s clients."""

    def test_text_generation_with_details(self, engine: Running) -> None:
        from huggingface_hub import InferenceClient

        client = InferenceClient(engine.url(), timeout=240)
        output = client.text_generation(
            PROMPT, max_new_tokens=8, details=True, top_n_tokens=3, decoder_input_details=True
        )
        assert "Paris" in output.generated_text
        assert len(output.details.tokens) == 8
        assert [len(top) for top in output.details.top_tokens] == [3] * 8
        assert output.details.tokens[0].logprob == output.details.top_tokens[0][0]["logprob"]
        assert len(output.details.prefill) == 5

    def test_text_generation_stream_and_adapter(self, engine: Running) -> None:
        from huggingface_hub import InferenceClient

        client = InferenceClient(engine.url(), timeout=240)
        for adapter in (None, "asker"):
            events = list(
                client.text_generation(
                    PROMPT, max_new_tokens=8, details=True, stream=True, adapter_id=adapter
                )
            )
            whole = client.text_generation(PROMPT, max_new_tokens=8, adapter_id=adapter)
            assert "".join(event.token.text for event in events) == whole
            assert events[-1].details.generated_tokens == 8

    def test_return_full_text_and_truncate(self, engine: Running) -> None:
        from huggingface_hub import InferenceClient

        client = InferenceClient(engine.url(), timeout=240)
        assert client.text_generation(PROMPT, max_new_tokens=3, return_full_text=True).startswith(
            PROMPT
        )
        whole = client.text_generation("so " * 2000, max_new_tokens=3, truncate=16, details=True)
        assert whole.details.generated_tokens == 3

    def test_chat_with_logprobs_stop_and_seed(self, engine: Running) -> None:
        from huggingface_hub import InferenceClient

        client = InferenceClient(engine.url(), timeout=240)
        answer = client.chat_completion(
            HELLO,
            model="tgi",
            max_tokens=8,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
            stop=["Paris"],
        )
        choice = answer.choices[0]
        assert choice.message.content.endswith("Paris")
        assert choice.finish_reason == "stop_sequence"
        assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2] * len(
            choice.logprobs.content
        )
        texts = {
            client.chat_completion(HELLO, max_tokens=12, temperature=1.0, seed=seed)
            .choices[0]
            .message.content
            for seed in (7, 7, 7)
        }
        assert len(texts) == 1

    def test_chat_stream(self, engine: Running) -> None:
        from huggingface_hub import InferenceClient

        client = InferenceClient(engine.url(), timeout=240)
        chunks = list(client.chat_completion(HELLO, max_tokens=8, temperature=0, stream=True))
        whole = client.chat_completion(HELLO, max_tokens=8, temperature=0)
        text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content

    def test_async(self, engine: Running) -> None:
        from huggingface_hub import AsyncInferenceClient

        async def all_of_it() -> list[str]:
            client = AsyncInferenceClient(engine.url("asker"), timeout=240)
            whole = await client.text_generation(PROMPT, max_new_tokens=6)
            stream = await client.text_generation(PROMPT, max_new_tokens=6, stream=True)
            chat = await client.chat_completion(HELLO, max_tokens=6, temperature=0)
            chunks = await client.chat_completion(HELLO, max_tokens=6, temperature=0, stream=True)
            pieces = [c.choices[0].delta.content async for c in chunks]
            return [
                whole,
                "".join([piece async for piece in stream]),
                chat.choices[0].message.content,
                "".join(pieces),
            ]

        whole, streamed, chat, chunked = asyncio.run(all_of_it())
        assert whole == streamed
        assert chat == chunked


class TestOpenAI:
    """The `openai` package."""

    def test_chat_completions_and_models(self, engine: Running) -> None:
        import openai

        client = openai.OpenAI(
            base_url=engine.url() + "/v1", api_key="-", timeout=240, max_retries=0
        )
        answer = client.chat.completions.create(
            model="tgi", messages=HELLO, max_tokens=8, temperature=0
        )
        assert "Paris" in answer.choices[0].message.content
        stream = client.chat.completions.create(
            model="tgi",
            messages=HELLO,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
        assert {"asker", "chat"} <= {model.id for model in client.models.list()}
        assert (
            client.completions.create(model="tgi", prompt=PROMPT, max_tokens=4, temperature=0)
            .choices[0]
            .text
        )

    def test_an_unknown_model_is_an_error_and_not_the_base(self, engine: Running) -> None:
        import openai

        client = openai.OpenAI(
            base_url=engine.url() + "/v1", api_key="-", timeout=240, max_retries=0
        )
        with pytest.raises(openai.UnprocessableEntityError) as raised:
            client.chat.completions.create(model="gpt-4", messages=HELLO)
        assert "served: base, asker, chat" in str(raised.value.body)
