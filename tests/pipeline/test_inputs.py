"""Inputs that no stage makes: what a wheel holds is imported, and no other Hub is asked for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.hub_server import HubServer

from hubkit.data.wheel_assets import IMPORTS
from hubkit.errors import RepoMissingError, SourceError
from hubkit.hub import Hub
from hubkit.pipeline import askers, require

KNOWN = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A Hub that has nothing, and the paths that it was asked for."""
    paths: list[str] = []

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()


def test_what_a_wheel_holds_is_asked_of_no_upstream(
    asked: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, paths = asked
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": KNOWN, "peft_type": "LORA"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))

    def imported(self: Any, *args: Any, **options: Any) -> None:
        raise SourceError("the wheel would be unpacked now")

    monkeypatch.setattr(type(IMPORTS[KNOWN]), "folder", imported)
    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path / "home"))
    server = HubServer(tmp_path / "hub", ("--upstream", url)).start()
    hub = Hub(server.url, server.token, "local", embedded=True)
    hub.commit("local/adapter", tmp_path / "adapter", "an adapter whose base is not here yet")
    for door in (require, askers.find):  # a stage's input, and an asker that someone names
        for name in (KNOWN, "local/adapter"):
            with pytest.raises(SourceError, match="unpacked now"):
                door(hub, name)
    assert paths == []
    with pytest.raises(RepoMissingError, match="can be made offline"):
        require(hub, "nobody/nothing")
    assert paths  # what only another Hub can have is looked for there
    server.stop()
