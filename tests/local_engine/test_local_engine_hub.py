"""From a Hub to serving: a model and an adapter by name and revision, from the embedded Hub."""

from __future__ import annotations

from pathlib import Path

from local_engine.test_local_engine_convert import small_model
from support.engine_server import start
from support.hub_server import HubServer


def test_a_repo_at_a_revision_is_fetched_and_served(tmp_path: Path) -> None:
    from huggingface_hub import HfApi
    from peft import LoraConfig, get_peft_model

    model = small_model(tmp_path / "model")
    config = LoraConfig(r=4, target_modules=["q_proj"], base_model_name_or_path="me/base")
    peft = get_peft_model(model, config)
    peft.peft_config["default"].base_model_name_or_path = "me/base"
    peft.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    hub = HubServer(tmp_path / "hub").start()
    try:
        api = HfApi(endpoint=hub.url, token=hub.token)
        shas = {}
        for name, folder in (("me/base", "model"), ("me/asker", "adapter")):
            api.create_repo(name)
            shas[name] = api.upload_folder(repo_id=name, folder_path=tmp_path / folder).oid
        env = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }
        options = ("--slots", "1", "--threads", "1", "--context", "128")
        engine = start(
            "--model", f"me/base@{shas['me/base']}", "--adapter=asker=me/asker", *options, env=env
        )
        assert engine.state["revision"] == shas["me/base"]
        assert engine.get("/info")["adapters"] == {"asker": "me/asker"}
        status, prompt = engine.post(
            "/chat_tokenize", {"model": "asker", "messages": [{"role": "user", "content": "Hi"}]}
        )
        assert (status, prompt["templated_text"]) == (200, "Hi!"), "an adapter's own template wins"
        status, answer = engine.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}
        )
        assert (status, answer["error_type"]) == (422, "template_error"), "the base has no template"
        engine.stop()
        alone = start("--model", "me/asker@main", *options, env=env)
        assert alone.get("/info", "asker")["model_id"] == "me/base"
        alone.stop()
        missing = start("--model", "me/nothing", env=env, wait=False)
        assert missing.process.wait(240) == 1
        assert "me/nothing" in missing.log.read_text()
        assert "Traceback" not in missing.log.read_text()
    finally:
        hub.stop()


def test_a_folder_without_a_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    engine = start("--model", str(tmp_path), wait=False)
    assert engine.process.wait(240) == 1
    assert "holds no model" in engine.log.read_text()
