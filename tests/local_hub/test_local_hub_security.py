"""Nobody gets in: the embedded Hub against forged, malformed and foreign requests, byte by byte."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from support.hub_server import Answer, HubServer, send

SHA = hashlib.sha256(b"content").hexdigest()


@pytest.fixture(scope="module")
def server(server: HubServer) -> HubServer:
    server.api().create_repo("local/target")
    server.api().create_repo("local/hidden", private=True)
    return server


def commit(server: HubServer, *lines: dict[str, Any] | bytes, **options: Any) -> Answer:
    header = {"key": "header", "value": {"summary": "try", "description": ""}}
    parts = [
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in (header, *lines)
    ]
    return send(
        server, "POST", "/api/models/local/target/commit/main", b"\n".join(parts), **options
    )


def file_line(path: str, content: bytes = b"x") -> dict[str, Any]:
    return {
        "key": "file",
        "value": {
            "path": path,
            "content": base64.b64encode(content).decode(),
            "encoding": "base64",
        },
    }


def head(api: HfApi) -> str:
    return api.repo_info("local/target").sha


BAD_PATHS = [
    "../up",
    "a/../../up",
    "a/..",
    "..",
    ".",
    "/etc/passwd",
    "a//b",
    "a/",
    "",
    ".git/config",
    "a/.GIT/hooks/post-commit",
    ".git ",
    ".git.",
    "git~1",
    ".g\u200cit",
    "．．/up",
    "\uff0egit",
    "a\\..\\b",
    "C:\\x",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "x" * 256,
    "/".join(["d" * 200] * 6),
    "\ud800",
]


@pytest.mark.attack
@pytest.mark.parametrize("path", BAD_PATHS, ids=ascii)
def test_paths_that_escape_or_hide_are_refused(server: HubServer, api: HfApi, path: str) -> None:
    before = head(api)
    for line in (file_line(path), {"key": "deletedFile", "value": {"path": path}}):
        assert commit(server, line).status in (400, 404, 422)
    assert commit(server, file_line("fine.txt"), file_line(path)).status == 422
    files = [{"path": path, "sample": "", "size": 1}]
    assert (
        send(server, "POST", "/api/models/local/target/preupload/main", {"files": files}).status
        == 422
    )
    assert head(api) == before


@pytest.mark.attack
@pytest.mark.parametrize(
    "path",
    [
        "/local/target/resolve/main/../../../token",
        "/local/target/resolve/main/%2e%2e/%2e%2e/token",
        "/local/target/resolve/main/..%2f..%2ftoken",
        "/local/target/resolve/..%2f..%2fHEAD/x",
        "/local/target/resolve/refs%2f..%2f..%2fconfig/x",
        "/local/target/resolve/main%00/x",
        "/local/target/resolve/main/%00",
        "/local/target/resolve/main/%ff%fe",
        "/local/target/tree/main/..%2f..",
        "/static/..%2f..%2ftoken",
        "/../token",
        "//etc/passwd",
        "/local%2ftarget/resolve/main/x",
        "/local/target.git/info/lfs/objects/..%2f..%2f..%2ftoken",
        "/api/models/..%2f..%2ftoken/x",
        "/api/models/local/target/tree/main/" + "a/" * 5000,
    ],
)
def test_addresses_lead_nowhere_else(server: HubServer, path: str) -> None:
    answer = send(server, "GET", path)
    assert answer.status in (400, 403, 404, 414, 422)
    assert server.token.encode() not in answer.body


def test_links_in_a_repository_are_not_followed(server: HubServer, api: HfApi) -> None:
    """A symbolic link can only come from outside (git); it is served as the text it is."""
    import subprocess

    api.create_repo("local/linked")
    folder = next((server.root / "repos").glob("models--local--linked--*"))
    script = """
set -e
blob=$(printf /etc/passwd | git hash-object -w --stdin)
tree=$(printf '120000 blob %s\\tlink\\n' "$blob" | git mktree)
commit=$(git -c user.name=x -c user.email=x@x commit-tree -m link "$tree")
git update-ref refs/heads/main "$commit"
"""
    subprocess.run(["bash", "-c", script], cwd=folder, check=True, timeout=240)
    assert send(server, "GET", "/local/linked/resolve/main/link").body == b"/etc/passwd"


@pytest.mark.attack
def test_wrong_and_missing_tokens(server: HubServer) -> None:
    for token in ("hf_wrongwrongwrong", "nonsense", "hf_" + "x" * 5000):
        assert send(server, "GET", "/api/whoami-v2", token=token).status == 401
    assert send(server, "GET", "/api/whoami-v2", token=None).status == 401
    assert (
        send(server, "GET", "/api/whoami-v2", token=None, Authorization="Basic bG9jYWw6eA==").status
        == 401
    )
    for method, path in [
        ("POST", "/api/repos/create"),
        ("POST", "/api/models/local/target/commit/main"),
        ("POST", "/api/models/local/target/branch/x"),
        ("POST", "/api/models/local/target/tag/main"),
        ("PUT", "/api/models/local/target/settings"),
        ("DELETE", "/api/repos/delete"),
        ("POST", "/local/target.git/info/lfs/objects/batch"),
        ("GET", "/api/models/local/target/xet-write-token/main"),
        ("POST", "/api/collections"),
    ]:
        body = {
            "name": "target",
            "namespace": "local",
            "title": "t",
            "operation": "upload",
            "objects": [],
            "tag": "x",
        }
        assert (
            send(server, method, path, body if method != "GET" else None, token=None).status == 401
        ), path


@pytest.fixture(scope="module")
def other(server: HubServer) -> dict[str, str]:
    """Somebody else's tokens on this Hub."""
    import subprocess
    import sys

    from support.hub_server import ROOT

    tokens = {}
    for role in ("read", "write"):
        command = [
            sys.executable,
            "-m",
            "hubkit.local_hub",
            "account",
            "--root",
            str(server.root),
            "--user",
            "guest",
        ]
        done = subprocess.run(
            [*command, "--role", role],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            timeout=240,
        )
        tokens[role] = done.stdout.strip()
    return tokens


@pytest.mark.attack
def test_read_tokens_read_and_other_users_keep_to_their_own(
    server: HubServer, other: dict[str, str]
) -> None:
    reader, writer = server.api(token=other["read"]), server.api(token=other["write"])
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert reader.repo_info("local/target").id == "local/target"
    for api, repo in ((reader, "guest/mine"), (reader, "local/target"), (writer, "local/theirs")):
        with pytest.raises(HfHubHTTPError) as error:
            api.create_repo(repo)
        assert error.value.response.status_code == 403
    for call in (
        lambda: writer.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id="local/target"),
        lambda: writer.delete_repo("local/target"),
        lambda: writer.create_tag("local/target", tag="v1"),
        lambda: writer.create_branch("local/target", branch="b"),
        lambda: writer.update_repo_settings("local/target", visibility="private"),
        lambda: writer.move_repo("local/target", "guest/target"),
        lambda: writer.super_squash_history("local/target"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert error.value.response.status_code == 403
    assert writer.create_repo("guest/mine").repo_id == "guest/mine"
    with pytest.raises(HfHubHTTPError) as error:
        writer.repo_info("local/hidden")
    assert error.value.response.status_code == 404


@pytest.mark.attack
def test_a_private_files_hash_is_no_permission_to_see_it(
    server: HubServer, api: HfApi, other: dict[str, str]
) -> None:
    secret = b"secret weights" * 1000
    api.upload_file(path_or_fileobj=secret, path_in_repo="w.safetensors", repo_id="local/hidden")
    oid = hashlib.sha256(secret).hexdigest()
    server.api(token=other["write"]).create_repo("guest/thief", exist_ok=True)
    batch = {
        "operation": "upload",
        "transfers": ["basic"],
        "objects": [{"oid": oid, "size": len(secret)}],
    }
    answer = send(
        server, "POST", "/guest/thief.git/info/lfs/objects/batch", batch, token=other["write"]
    ).json()
    assert "actions" in answer["objects"][0], "the Hub says that it knows the file"
    body = [
        {"key": "header", "value": {"summary": "steal"}},
        {
            "key": "lfsFile",
            "value": {"path": "w", "algo": "sha256", "oid": oid, "size": len(secret)},
        },
    ]
    lines = b"\n".join(json.dumps(line).encode() for line in body)
    assert (
        send(
            server, "POST", "/api/models/guest/thief/commit/main", lines, token=other["write"]
        ).status
        == 404
    )
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(secret)}\n"
    ).encode()
    lines = b"\n".join(json.dumps(line).encode() for line in (body[0], file_line("w", pointer)))
    assert (
        send(
            server, "POST", "/api/models/guest/thief/commit/main", lines, token=other["write"]
        ).status
        == 404
    )


@pytest.mark.attack
def test_forged_hashes_and_sizes(server: HubServer, api: HfApi) -> None:
    before = head(api)
    batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": SHA, "size": 7}]}
    action = send(server, "POST", "/local/target.git/info/lfs/objects/batch", batch).json()[
        "objects"
    ][0]["actions"]
    href = action["upload"]["href"].removeprefix(server.url)
    assert send(server, "PUT", href, b"CONTENT", token=None).status == 400
    assert send(server, "PUT", href, b"short", token=None).status == 400
    assert send(server, "PUT", href, b"much longer than promised", token=None).status == 413
    assert (
        send(server, "PUT", href.replace("size=7", "size=8"), b"contents", token=None).status == 403
    )
    forged = href[:-1] + ("0" if href[-1] != "0" else "1")
    assert send(server, "PUT", forged, b"content", token=None).status == 403
    assert send(server, "PUT", href.partition("?")[0], b"content", token=None).status == 403
    other_oid = hashlib.sha256(b"other").hexdigest()
    assert send(server, "PUT", href.replace(SHA, other_oid), b"content", token=None).status == 403
    missing = {
        "key": "lfsFile",
        "value": {"path": "m", "algo": "sha256", "oid": other_oid, "size": 5},
    }
    assert commit(server, missing).status == 404
    assert send(server, "PUT", href, b"content", token=None).status == 200
    lie = {"key": "lfsFile", "value": {"path": "m", "algo": "sha256", "oid": SHA, "size": 8}}
    assert commit(server, lie).status == 422
    for oid in ("../../token", "x" * 64, SHA.upper(), SHA + "0"):
        assert (
            commit(
                server, {"key": "lfsFile", "value": {"path": "m", "algo": "sha256", "oid": oid}}
            ).status
            == 400
        )
    assert head(api) == before


def test_oversized_and_malformed_commits(server: HubServer, api: HfApi) -> None:
    before = head(api)
    assert (
        commit(
            server, b'{"key":"file","value":{"path":"a","content":"' + b"A" * (15 * 2**20) + b'"}}'
        ).status
        == 413
    )
    for line in (
        b"{",
        b"[]",
        b"null",
        b'{"key":"file"}',
        b'{"key":"rm","value":{}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ):
        assert commit(server, line).status == 400
    bad_base64 = {"key": "file", "value": {"path": "a", "content": "!!", "encoding": "base64"}}
    assert commit(server, bad_base64).status == 400
    assert send(server, "POST", "/api/models/local/target/commit/main", b"").status == 400
    assert send(server, "POST", "/api/validate-yaml", b"[" * 200_000).status == 400
    assert send(server, "POST", "/api/validate-yaml", b"x" * (17 * 2**20)).status == 413
    assert head(api) == before


@pytest.mark.attack
def test_yaml_that_unfolds(server: HubServer, api: HfApi) -> None:
    levels = ["a: &a [x,x,x,x,x,x,x,x,x]"] + [
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)
    ]
    card = "---\n" + "\n".join(levels) + "\n---\n# Card\n"
    answer = send(server, "POST", "/api/validate-yaml", {"content": card, "repoType": "model"})
    assert answer.status == 400
    assert commit(server, file_line("README.md", card.encode())).status == 200
    assert api.repo_info("local/target").card_data is None
    unsafe = "---\na: !!python/object/apply:os.system ['true']\n---\n"
    assert (
        send(server, "POST", "/api/validate-yaml", {"content": unsafe, "repoType": "model"}).status
        == 400
    )


@pytest.mark.parametrize(
    "bomb", ["a: " + "[" * 100_000, "{" * 100_000, "- " * 100_000, "a: 2020-13-45", "a: !!int ''"]
)
def test_a_card_that_no_one_can_read_harms_nobody(server: HubServer, api: HfApi, bomb: str) -> None:
    card = f"---\n{bomb}\n---\n# Card\n"
    assert commit(server, file_line("README.md", card.encode())).status == 200
    assert api.repo_info("local/target").card_data is None
    body = {"content": card, "repoType": "model"}
    assert send(server, "POST", "/api/validate-yaml", body).status == 400
    assert send(server, "GET", "/local/target").status == 200, "the same process answers"
    assert server.process is not None and server.process.poll() is None


def xet(server: HubServer) -> tuple[str, str]:
    answer = send(server, "GET", "/api/models/local/target/xet-write-token/main").json()
    return answer["casUrl"].removeprefix(server.url), answer["accessToken"]


def chunk(data: bytes, scheme: int, size: int, packed: int | None = None) -> bytes:
    packed = len(data) if packed is None else packed
    return (
        b"\0" + packed.to_bytes(3, "little") + bytes([scheme]) + size.to_bytes(3, "little") + data
    )


def shard(xorb: str, size: int, chunks: int, sha256: str) -> bytes:
    """A shard of one file, as clients send it."""

    def as_words(text: str) -> bytes:
        return b"".join(struct.pack("<Q", int(text[i : i + 16], 16)) for i in range(0, 64, 16))

    file_head = b"\1" * 32 + struct.pack("<IIQ", 1 << 30, 1, 0)
    segment = as_words(xorb) + struct.pack("<IIII", 0, size, 0, chunks)
    end = b"\xff" * 32 + b"\0" * 16
    return (
        b"HFRepoMetaData\0".ljust(48, b"\0")
        + file_head
        + segment
        + as_words(sha256)
        + b"\0" * 16
        + end
        + end
    )


@pytest.mark.attack
def test_xet_uploads_are_checked(server: HubServer) -> None:
    import lz4.frame

    base, token = xet(server)
    name = "ab" * 32
    path = f"{base}/v1/xorbs/default/{name}"
    for wrong in ("", "1.2.3", token[:-1] + ("0" if token[-1] != "0" else "1")):
        assert send(server, "POST", path, b"", token=wrong or None).status in (401, 403)
    assert (
        send(server, "POST", path.replace(name, "..%2f..%2ftoken"), b"", token=token).status == 404
    )
    assert send(server, "POST", path.replace("-local", "-guest"), b"", token=token).status in (
        403,
        404,
    )
    for bad in (b"\1" * 8, chunk(b"abc", 0, 2**24 - 1), chunk(b"abc", 0, 3, packed=900), b"\0" * 7):
        assert send(server, "POST", path, bad, token=token).status == 400
    assert send(server, "POST", path, b"x" * (67 * 2**20), token=token).status == 413
    bomb = lz4.frame.compress(b"\0" * (64 * 2**20))
    assert len(bomb) < 300_000
    sha_of_bomb = hashlib.sha256(b"\0" * 200_000).hexdigest()
    assert send(server, "POST", path, chunk(bomb[:200_000], 1, 200_000), token=token).status == 200
    assert (
        send(
            server, "POST", f"{base}/v1/shards", shard(name, 200_000, 1, sha_of_bomb), token=token
        ).status
        == 400
    )
    for lie in (shard(name, 7, 2, SHA), shard(name, 8, 1, SHA), shard(name, 7, 1, "0" * 64)):
        assert send(server, "POST", path, chunk(b"content", 0, 7), token=token).status == 200
        assert send(server, "POST", f"{base}/v1/shards", lie, token=token).status == 400
    for junk in (b"", b"HFRepoMetaData\0" + b"\0" * 200, shard(name, 7, 1, SHA)[:100]):
        assert send(server, "POST", f"{base}/v1/shards", junk, token=token).status == 400
    assert (
        send(server, "POST", f"{base}/v1/shards", shard(name, 7, 1, SHA), token=token).status == 200
    )
    assert (
        send(server, "POST", f"{base}/v1/shards", shard("cd" * 32, 7, 1, SHA), token=token).status
        == 400
    )
    assert xet(server)[0] != base, "a client that refers to what was never sent gets a new address"


@pytest.mark.attack
def test_no_header_comes_out_of_what_came_in(server: HubServer, api: HfApi) -> None:
    answer = send(
        server, "GET", "/api/models/local/nowhere%0d%0aSet-Cookie:%20a=b", X_Request_Id="id<>\"'"
    )
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["X-Request-Id"] == "id"
    name = 'quo"te; filename=evil.exe \u2028.txt'
    api.create_commit(
        "local/target", operations=[CommitOperationAdd(name, b"x")], commit_message="odd name"
    )
    from urllib.parse import quote

    answer = send(server, "GET", f"/local/target/resolve/main/{quote(name)}")
    assert answer.status == 200
    assert '"' not in answer.headers["Content-Disposition"]


def test_open_to_the_network_needs_a_token_for_everything(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    server = HubServer(tmp_path_factory.mktemp("open"), ("--host", "0.0.0.0")).start()
    try:
        server.api().create_repo("local/public")
        assert send(server, "GET", "/api/models", token=None).status == 401
        assert send(server, "GET", "/", token=None).status == 401
        assert send(server, "GET", "/api/models/local/public", token=None).status == 401
        for trick in (
            "/api/models?sig=1",
            "/local/public/resolve/main/.gitattributes?sig=1",
            "/local/public.git/info/lfs/verify?sig=1",
        ):
            assert send(server, "GET", trick, token=None).status == 401
        assert send(server, "GET", "/login", token=None).status == 200
        assert send(server, "GET", "/api/models/local/public").status == 200
        server.api().upload_file(
            path_or_fileobj=b"\0" * 1000, path_in_repo="a.bin", repo_id="local/public"
        )
    finally:
        server.stop()


@pytest.mark.attack
def test_the_token_stays_in_its_file(server: HubServer) -> None:
    from pathlib import Path

    for path in server.root.rglob("*"):
        if path.is_file() and path.name != "token":
            assert server.token.encode() not in path.read_bytes(), path
    assert server.token not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
