"""The embedded Hub's pages: what strangers wrote is shown and never run; a browser's session reads
and never writes.
"""

from __future__ import annotations

import json
import re
import struct
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from support.hub_server import HubServer, send

from hubkit.local_hub import pages

SCRIPT = (Path(pages.__file__).parent / "copy.js").read_text("utf-8")  # the only one that may run
OWN_SCRIPT = re.compile(re.escape(f"<script>{SCRIPT}</script>"))


@pytest.fixture(scope="module")
def server(server: HubServer) -> HubServer:
    server.api().create_repo("local/target")
    server.api().create_repo("local/hidden", private=True)
    return server


def test_other_sites_and_other_names_are_refused(server: HubServer) -> None:
    body = {"name": "evil", "type": "model"}
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Origin": "null"},
    ):
        assert send(server, "POST", "/api/repos/create", body, **headers).status == 403
        assert send(server, "POST", "/login", b"token=x", token=None, **headers).status == 403
    assert send(server, "GET", "/", Host="evil.example:7364").status == 403
    assert send(server, "GET", "/api/models", Host="evil.example").status == 403
    assert send(server, "GET", "/api/models", Host="localhost:7364").status == 200


def test_a_browser_session_reads_and_never_writes(server: HubServer) -> None:
    form = f"token={server.token}".encode()
    answer = send(server, "POST", "/login", form, token=None)
    assert answer.status == 303
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert server.token not in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    assert send(server, "GET", "/local/hidden", token=None, **session).status == 200
    assert send(server, "GET", "/local/hidden", token=None).status == 401
    assert (
        send(
            server, "POST", "/api/repos/create", {"name": "by-cookie"}, token=None, **session
        ).status
        == 401
    )
    assert (
        send(
            server, "GET", "/api/models/local/target/xet-write-token/main", token=None, **session
        ).status
        == 403
    )
    forged = {"Cookie": session["Cookie"][:-4] + "0000"}
    assert send(server, "GET", "/local/hidden", token=None, **forged).status == 401


def test_files_never_run_as_pages(server: HubServer, api: HfApi) -> None:
    script = b"<script>alert(1)</script>"
    files = [
        CommitOperationAdd(name, script) for name in ("x.html", "x.svg", "x.xhtml", "x.js", "x")
    ]
    api.create_commit("local/target", operations=files, commit_message="pages")
    for file in files:
        answer = send(server, "GET", f"/local/target/resolve/main/{file.path_in_repo}")
        kind = answer.headers["Content-Type"].partition(";")[0]
        assert kind in ("text/plain", "application/octet-stream"), (file.path_in_repo, kind)
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_cards_and_names_are_escaped_on_pages(server: HubServer, api: HfApi) -> None:
    evil = (
        "<img src=x onerror=alert(1)><script>alert(2)</script>"
        '<a href="javascript:alert(3)">a</a><style>*{}</style>'
    )
    tag = evil.replace("'", "")
    text = (
        f"# T\n{evil}\n<iframe src=//evil.example></iframe>\n\n"
        "[j](javascript:alert(4)) [rel](a/b.md)"
    )
    card = f"---\ntags: ['{tag}']\n---\n{text}"
    api.create_repo("local/card", repo_type="dataset", exist_ok=True)
    rows = json.dumps({"messages": [{"role": "user", "content": evil}], evil: evil}).encode()
    files = [
        CommitOperationAdd("README.md", card.encode()),
        CommitOperationAdd("train.jsonl", rows),
    ]
    files.append(CommitOperationAdd("<b>.txt", evil.encode()))
    api.create_commit("local/card", operations=files, commit_message=evil, repo_type="dataset")
    api.create_discussion("local/card", title=evil, description=evil, repo_type="dataset")
    for path in (
        "",
        "/tree/main",
        "/blob/main/README.md",
        "/blob/main/%3Cb%3E.txt",
        "/commits/main",
        "/commit/main",
        "/rows",
        "/discussions",
        "/discussions/1",
    ):
        answer = send(server, "GET", f"/datasets/local/card{path}")
        assert answer.status == 200, path
        page, own_scripts = OWN_SCRIPT.subn("", answer.body.decode())
        assert own_scripts == 1, path
        for trap in (
            "<script",
            "onerror=alert(1)>",
            'href="javascript:',
            "<iframe",
            "<style",
            "<b>.txt",
        ):
            assert trap not in page.replace("&lt;", ""), (path, trap)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        (scripts,) = re.findall(r"script-src ([^;]*);", policy)
        assert scripts == f"'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'"
    assert (
        'href="/datasets/local/card/blob/main/a/b.md"'
        in send(server, "GET", "/datasets/local/card").body.decode()
    )


def test_a_data_file_that_kills_its_reader_does_not_kill_the_server(
    server: HubServer, api: HfApi
) -> None:
    api.create_repo("local/bad-data", repo_type="dataset", exist_ok=True)
    junk = b"PAR1" + b"\xff" * 5000 + struct.pack("<I", 4000) + b"PAR1"
    files = [
        CommitOperationAdd("train.parquet", junk),
        CommitOperationAdd("x.jsonl", b'{"a": ' + b"[" * 50_000),
    ]
    api.create_commit(
        "local/bad-data", operations=files, commit_message="junk", repo_type="dataset"
    )
    for name in ("train.parquet", "x.jsonl"):
        answer = send(server, "GET", f"/datasets/local/bad-data/rows?file={name}")
        assert answer.status == 200
        assert "cannot be read" in answer.body.decode()
    assert send(server, "GET", "/datasets/local/bad-data/rows?file=../../token").status == 404


def test_a_files_page_leads_to_its_rows_and_to_the_folders_above(
    server: HubServer, api: HfApi
) -> None:
    api.create_repo("local/deep", repo_type="dataset", exist_ok=True)
    files = [CommitOperationAdd("data/of it/x.csv", b"a,b\n1,2\n")]
    api.create_commit("local/deep", files, commit_message="rows", repo_type="dataset")
    page = send(server, "GET", "/datasets/local/deep/blob/main/data/of%20it/x.csv").body.decode()
    links = re.findall(r'href="(/datasets/local/deep/(?:tree|rows)[^"]*)"', page)
    assert set(links) >= {
        "/datasets/local/deep/rows?file=data%2Fof%20it%2Fx.csv",
        "/datasets/local/deep/tree/main/data",
        "/datasets/local/deep/tree/main/data/of%20it",
    }
    for link in links:
        assert send(server, "GET", link).status == 200, link


def test_rows_begin_with_the_config_that_load_dataset_reads(server: HubServer, api: HfApi) -> None:
    api.create_repo("local/configs", repo_type="dataset", exist_ok=True)
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}.jsonl"}]}
        for name in ("aside", "default")
    ]
    files = [
        CommitOperationAdd("README.md", f"---\nconfigs: {json.dumps(configs)}\n---\n".encode()),
        CommitOperationAdd("aside.jsonl", b'{"text": "of the other config"}\n'),
        CommitOperationAdd("default.jsonl", b'{"text": "of the default one"}\n'),
        CommitOperationAdd("a_file-name.txt", b"text"),
    ]
    api.create_commit("local/configs", files, commit_message="configs", repo_type="dataset")
    for path, shown in (("/viewer", "default"), ("/rows", "default"), ("/viewer/aside", "other")):
        page = send(server, "GET", f"/datasets/local/configs{path}").body.decode()
        assert f"of the {shown}" in page, path
        name = "aside" if shown == "other" else shown
        assert re.search(rf'aria-current="page">{name} / train<', page), path
    answer = send(server, "GET", "/datasets/local/configs/rows?file=aside.jsonl")
    assert "of the other config" in answer.body.decode()
    tree = send(server, "GET", "/datasets/local/configs/tree/main").body.decode()
    assert "a_<wbr>file-<wbr>name.<wbr>txt" in tree
