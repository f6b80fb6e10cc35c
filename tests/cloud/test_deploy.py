"""What is sent for each engine, what it costs, and endpoints that are made, held, given back and
found again.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_hub.test_local_hub_inference import engines, tiny_model
from pydantic import TypeAdapter
from support.waiting import until

from hubkit import cloud
from hubkit.cloud import leases, prices
from hubkit.errors import EndpointError, HubError, RecipeError
from hubkit.hub import Hub, Ref, connect

ASKER = Ref("local/an-asker", "model", "a" * 40)
BASE = Ref("meta-llama/Llama-2-13b-hf", "model", "b" * 40)
EXAMPLES = Path(__file__).parent / "endpoint_examples"
CASES = {
    "tgi": cloud.EndpointSpec(BASE, "tgi", prices.hardware("nvidia-a100-x1"), context=4096),
    "tgi-adapters": cloud.EndpointSpec(
        BASE,
        "tgi",
        prices.hardware("nvidia-a100-x2"),
        adapters=(ASKER, Ref("local/a-chat", "model", "c" * 40)),
    ),
    "vllm": cloud.EndpointSpec(BASE, "vllm", prices.hardware("nvidia-a100-x2"), context=4096),
    "vllm-adapter": cloud.EndpointSpec(
        BASE, "vllm", prices.hardware("gcp-nvidia-h100-x1"), adapters=(ASKER,)
    ),
    "sglang": cloud.EndpointSpec(
        BASE, "sglang", prices.hardware("nvidia-l40s-x4"), sleep_minutes=0
    ),
    "sglang-adapter": cloud.EndpointSpec(
        BASE, "sglang", prices.hardware("nvidia-l40s-x1"), adapters=(ASKER,)
    ),
    "llamacpp": cloud.EndpointSpec(
        BASE,
        "llamacpp",
        prices.hardware("intel-spr-x16"),
        gguf_file="model-q8_0.gguf",
        context=2048,
    ),
}


# What is sent


@pytest.mark.parametrize("case", CASES)
def test_a_payload_is_what_the_client_takes(case: str) -> None:
    from huggingface_hub import HfApi

    sent = cloud.payload(CASES[case])
    signature = inspect.signature(HfApi.create_inference_endpoint)
    signature.bind(None, **sent, namespace="local", token="hf_x", secrets={})
    hints = typing.get_type_hints(HfApi.create_inference_endpoint)
    for name, value in sent.items():
        TypeAdapter(hints[name]).validate_python(value, strict=True)
    taken = inspect.signature(HfApi.update_inference_endpoint).parameters
    assert set(sent) - {"region", "vendor", "type"} <= set(taken)


@pytest.mark.parametrize("case", CASES)
def test_what_goes_over_the_wire_is_the_recorded_example(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own request, kept as a file per image: a change of what is sent is a change of
    that file.
    """
    from huggingface_hub import HfApi, hf_api

    class Sent(Exception):
        pass

    class Session:
        def post(self, url: str, headers: Any, json: Any) -> None:
            raise Sent(json)

    monkeypatch.setattr(hf_api, "get_session", Session)
    with pytest.raises(Sent) as caught:
        HfApi(token="hf_x").create_inference_endpoint(
            **cloud.payload(CASES[case]), namespace="local"
        )
    recorded = EXAMPLES / f"{case}.json"
    if os.environ.get("RECORD"):
        recorded.parent.mkdir(exist_ok=True)
        recorded.write_text(json.dumps(caught.value.args[0], indent=1) + "\n", "utf-8")
    assert caught.value.args[0] == json.loads(recorded.read_text("utf-8"))


def test_an_engine_that_cannot_says_what_can() -> None:
    place = prices.hardware("nvidia-l4-x1")
    with pytest.raises(RecipeError, match="--engine tgi or vllm"):
        cloud.payload(cloud.EndpointSpec(BASE, "llamacpp", place, adapters=(ASKER,)))
    with pytest.raises(RecipeError, match="--gguf"):
        cloud.payload(cloud.EndpointSpec(BASE, "llamacpp", place))
    with pytest.raises(RecipeError, match="together with --engine tgi"):
        cloud.payload(cloud.EndpointSpec(BASE, "vllm", place, adapters=(ASKER, BASE)))


def test_an_image_can_be_chosen_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, other = CASES["vllm"], CASES["tgi"]
    by_tag, name = cloud.payload(spec)["custom_image"], spec.name
    image = "vllm/vllm-openai@sha256:" + "ab" * 32
    monkeypatch.setenv("HUBKIT_IMAGES", f" vllm={image} ")
    assert cloud.payload(spec)["custom_image"]["vLLM"]["url"] == image
    assert cloud.payload(other)["custom_image"]["url"].startswith("ghcr.io/huggingface/")
    assert spec.name != name, "an endpoint of another image is another endpoint"
    for wrong in ("vllm", "vlm=x", "vllm=", "vllm=a b=c", "vllm=-x"):
        monkeypatch.setenv("HUBKIT_IMAGES", wrong)
        with pytest.raises(RecipeError, match="HUBKIT_IMAGES holds"):
            cloud.payload(spec)
    monkeypatch.delenv("HUBKIT_IMAGES")
    assert (cloud.payload(spec)["custom_image"], spec.name) == (by_tag, name)


def test_a_name_fits_and_says_what_is_served() -> None:
    wanted = CASES["tgi-adapters"]
    assert wanted.name.startswith("an-asker-") and len(wanted.name) <= 32
    longest = cloud.EndpointSpec(
        Ref("x/" + "Long_Name." * 9, "model", "d" * 40), "tgi", wanted.hardware
    )
    assert len(longest.name) <= 32 and not longest.name.endswith("-")
    assert longest.name != CASES["tgi"].name == CASES["tgi"].name


# What it costs


def test_the_price_table_has_a_date_and_knows_what_the_client_knows() -> None:
    from huggingface_hub import JobHardware

    assert prices.date() == "2026-11-22"
    assert {flavor.value for flavor in JobHardware} == set(prices.table()["jobs"]["flavors"])
    assert prices.flavor("a100x8").usd_per_hour == 20.0
    place = prices.hardware("aws-eu-west-1-nvidia-l4-x4")
    assert (place.region, place.usd_per_hour, place.accelerator, str(place)) == (
        "eu-west-1", 3.8, "gpu", "aws-nvidia-l4-x4",
    )  # fmt: skip
    assert prices.hardware("nvidia-l4-x1").region == "us-east-1"
    with pytest.raises(RecipeError, match="did you mean 'nvidia-a100-x1'"):
        prices.hardware("nvidia-a1000-x1")
    with pytest.raises(RecipeError, match="job flavor"):
        prices.flavor("a100")


# Endpoints on the embedded Hub


@pytest.fixture(scope="module")
def hub(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = connect()
    hub.commit(hub.qualify("tiny"), tiny_model(tmp_path_factory.mktemp("tiny")), "A model")
    hub.commit(hub.qualify("no-model"), _empty(tmp_path_factory.mktemp("none")), "Not a model")
    yield hub
    for endpoint in cloud.listed(hub):
        cloud.delete(hub, endpoint.name)


def _empty(folder: Path) -> Path:
    (folder / "config.json").write_text("{}", "utf-8")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from hubkit.cloud import endpoints

    monkeypatch.setattr(endpoints, "POLL_S", 0.1)
    monkeypatch.setattr(leases, "WATCH_S", 0.2)


def tiny(hub: Hub, **options: Any) -> cloud.EndpointSpec:
    return cloud.endpoint_spec(hub, "local/tiny", hardware="intel-spr-x1", **options)


def one_held(hub: Hub, wanted: cloud.EndpointSpec, after: Any = "delete") -> Any:
    return cloud.held(hub, cloud.LeaseRequest(wanted, after))


def names(hub: Hub) -> set[str]:
    return {endpoint.name for endpoint in cloud.listed(hub)}


def serving(hub: Hub) -> list[psutil.Process]:
    from hubkit.hub import embedded

    return [p for p in engines() if p.ppid() == embedded.running()["pid"]]


@pytest.mark.parametrize("engine", ["tgi", "vllm", "sglang"])
def test_an_endpoint_of_each_engine_comes_up_and_goes(hub: Hub, engine: Any) -> None:
    import httpx

    wanted = tiny(hub, engine=engine, called=f"tiny-{engine}")
    made = cloud.make(hub, wanted)
    assert made.state == "pending" and "hubkit" in made.tags and made.usd_per_hour == 0
    up = cloud.wait(hub, wanted.name)
    body = {
        "model": cloud.served_as(wanted, wanted.model),
        "messages": [{"role": "user", "content": "Hi"}],
    }
    headers = {"Authorization": f"Bearer {hub.token}"}
    answer = httpx.post(
        f"{up.url}/v1/chat/completions",
        json={**body, "max_tokens": 3},
        headers=headers,
        timeout=240,
    )
    assert answer.status_code == 200, answer.text
    assert cloud.update(hub, wanted.name, tiny(hub, engine=engine, context=128)).state == "updating"
    cloud.wait(hub, wanted.name)
    assert cloud.change(hub, wanted.name, "scale_to_zero").state == "scaledToZero"
    assert cloud.change(hub, wanted.name, "resume").state in ("pending", "initializing")
    assert cloud.change(hub, wanted.name, "pause").state == "paused"
    cloud.delete(hub, wanted.name)
    assert wanted.name not in names(hub)
    until(lambda: not serving(hub))  # one that was just starting again ends when it next looks


def test_a_held_endpoint_is_gone_when_the_block_ends_even_by_an_error(hub: Hub) -> None:
    wanted = tiny(hub)
    with one_held(hub, wanted) as [held]:
        found = cloud.describe(hub, held.name)
        assert found.state == "running" and "hubkit-after-delete" in found.tags
        assert [one.pid for one in leases.holders()[held.name]] == [os.getpid()]
    assert wanted.name not in names(hub) and not leases.holders()
    with pytest.raises(KeyboardInterrupt), one_held(hub, wanted):
        raise KeyboardInterrupt
    assert wanted.name not in names(hub) and not leases.holders()
    until(lambda: not serving(hub))


def test_the_last_holder_ends_it(hub: Hub) -> None:
    wanted = tiny(hub)
    with one_held(hub, wanted, after="pause"):
        with one_held(hub, wanted, after="delete"):
            pass
        assert cloud.describe(hub, wanted.name).state == "running"
    assert cloud.describe(hub, wanted.name).state == "paused"
    with one_held(hub, wanted, after="delete"):
        assert cloud.describe(hub, wanted.name).state == "running"
    assert cloud.describe(hub, wanted.name).state == "paused"  # as it was found
    cloud.delete(hub, wanted.name)


def test_somebody_elses_endpoint_is_used_and_left_as_it_was(hub: Hub) -> None:
    wanted = tiny(hub)
    cloud.make(hub, wanted)
    cloud.wait(hub, wanted.name)
    with one_held(hub, wanted):
        pass
    assert cloud.describe(hub, wanted.name).state == "running"
    cloud.delete(hub, wanted.name)


def test_one_that_cannot_start_ends_with_its_message_and_is_given_back(hub: Hub) -> None:
    wanted = cloud.endpoint_spec(hub, "local/no-model", hardware="intel-spr-x1")
    with pytest.raises(EndpointError, match=r"failed: .*no-model"), one_held(hub, wanted):
        raise AssertionError("it never comes up")
    assert wanted.name not in names(hub) and not leases.holders()


def test_several_come_up_side_by_side(hub: Hub) -> None:
    notes: list[str] = []
    terms = [cloud.LeaseRequest(tiny(hub, context=context)) for context in (48, 96)]
    with cloud.held(hub, *terms, progress=lambda done, total=None, note="": notes.append(note)) as [
        one,
        other,
    ]:
        assert (
            one.url != other.url and names(hub) == {one.name, other.name} and len(serving(hub)) == 2
        )
        assert {cloud.describe(hub, name).state for name in names(hub)} == {"running"}
    assert any(one.name in note and other.name in note for note in notes), notes
    assert not names(hub) and not leases.holders()
    until(lambda: not serving(hub))


def test_the_first_that_fails_ends_the_others_too(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubkit.cloud import endpoints

    monkeypatch.setattr(
        endpoints, "_healthy", lambda *_: False
    )  # the good one would be waited for very long
    bad = cloud.endpoint_spec(hub, "local/no-model", hardware="intel-spr-x1")
    terms = [
        cloud.LeaseRequest(tiny(hub, context=48), wait_s=600),
        cloud.LeaseRequest(bad, wait_s=600),
    ]
    with pytest.raises(EndpointError, match=r"failed: .*no-model"), cloud.held(hub, *terms):
        raise AssertionError("they never come up")
    assert not names(hub) and not leases.holders()
    until(lambda: not serving(hub))


def test_one_that_fails_while_it_is_used_interrupts_with_its_message(hub: Hub) -> None:
    wanted = tiny(hub)
    with (
        pytest.raises(EndpointError, match="failed while it was used: the engine ended"),
        one_held(hub, wanted),
    ):
        for process in serving(hub):
            process.kill()
        time.sleep(30)
    assert wanted.name not in names(hub)


DRIVER = """
    import sys, time
    from hubkit import cloud
    from hubkit.hub import connect
    hub = connect()
    wanted = cloud.endpoint_spec(hub, "local/tiny", hardware="intel-spr-x1", context=64)
    with cloud.held(hub, cloud.LeaseRequest(wanted, sys.argv[1])) as [held]:
        print(held.name, flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize(("after", "outcome"), [("delete", "deleted"), ("pause", "paused")])
def test_what_a_killed_holder_left_is_found_and_ended(hub: Hub, after: str, outcome: str) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), after], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    name = driver.stdout.readline().strip()
    assert cloud.describe(hub, name).state == "running" and serving(hub)
    assert cloud.reap(hub) == []  # its holder lives
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert cloud.describe(hub, name).state == "running"
    assert cloud.reap(hub) == [cloud.CleanupResult(name, outcome)]
    assert not leases.holders()
    until(lambda: not serving(hub))
    assert (name in names(hub)) == (after == "pause")
    if after == "pause":
        cloud.delete(hub, name)


def test_a_lease_written_before_its_endpoint_was_made_is_cleared(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubkit.cloud import endpoints

    def die(*_: Any) -> None:
        os._exit(9)

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(endpoints, "make", die)
        with one_held(hub, tiny(hub, context=32)):
            pass
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(leases.holders()) == 1
    assert [one.outcome for one in cloud.reap(hub)] == ["gone"] and not leases.holders()


def test_adapters_of_one_base_are_served_together(hub: Hub, tmp_path: Path) -> None:
    import httpx
    from support.tiny_models import tiny_adapter

    base = tiny_model(tmp_path / "base")
    for name in ("asker", "chat"):
        hub.commit(
            hub.qualify(f"tiny-{name}"),
            tiny_adapter(tmp_path / name, base, "local/tiny"),
            "An adapter",
        )
    refs = tuple(hub.resolve(f"local/tiny-{name}") for name in ("asker", "chat"))
    wanted = cloud.endpoint_spec(hub, "local/tiny-asker", hardware="intel-spr-x1")
    assert wanted.model.repo_id == "local/tiny" and wanted.adapters == refs[:1]
    both = cloud.EndpointSpec(wanted.model, "tgi", wanted.hardware, adapters=refs)
    headers = {"Authorization": f"Bearer {hub.token}"}
    with one_held(hub, both) as [held]:
        for adapter in (*(ref.repo_id for ref in refs), None):
            parameters = {"max_new_tokens": 3, **({"adapter_id": adapter} if adapter else {})}
            body = {"inputs": "How do I bake bread?", "parameters": parameters}
            answer = httpx.post(f"{held.url}/generate", json=body, headers=headers, timeout=240)
            assert answer.status_code == 200, answer.text
        body["parameters"]["adapter_id"] = "local/other"
        assert (
            httpx.post(f"{held.url}/generate", json=body, headers=headers, timeout=240).status_code
            == 422
        )


def test_a_missing_endpoint_is_said_to_be_missing(hub: Hub) -> None:
    with pytest.raises(HubError, match="nowhere") as missing:
        cloud.describe(hub, "nowhere")
    assert missing.value.status == 404
