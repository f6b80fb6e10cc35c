"""Fixtures under which huggingface_hub's tests run here (its own are not in its source
distribution).
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import pytest
from huggingface_hub import HfApi, RepoUrl, constants
from huggingface_hub.utils import SoftTemporaryDirectory

from .reach import pytest_runtest_logreport, pytest_runtest_logstart, pytest_sessionfinish  # noqa: F401
from .testing_constants import ENDPOINT_PRODUCTION, ENDPOINT_STAGING, TOKEN
from .testing_utils import repo_name


class RepoFactory(Protocol):
    """Makes a repository that is removed after the test."""

    def __call__(
        self, repo_type: str = "model", repo_id: str | None = None, **options: Any
    ) -> RepoUrl: ...


def pytest_configure(config: pytest.Config) -> None:
    for name in (
        "api",
        "transfer",
        "inference",
        "xet",
        "no_xet",
        "production",
        "deprecated",
        "git_lfs",
    ):
        config.addinivalue_line("markers", name)


@pytest.fixture(scope="session")
def api() -> HfApi:
    return HfApi(endpoint=ENDPOINT_STAGING, token=TOKEN)


@pytest.fixture(scope="session")
def api_prod() -> HfApi:
    return HfApi(endpoint=ENDPOINT_PRODUCTION)


@pytest.fixture
def repo_factory(api: HfApi) -> Iterator[RepoFactory]:
    made: list[tuple[RepoUrl, Any]] = []

    def make(repo_type: str = "model", repo_id: str | None = None, **options: Any) -> RepoUrl:
        url = api.create_repo(repo_id or repo_name(), repo_type=repo_type, **options)
        made.append((url, options.get("token")))
        return url

    yield make
    for url, token in made:
        api.delete_repo(url.repo_id, repo_type=url.repo_type, missing_ok=True, token=token)


@pytest.fixture
def new_repo_id(api: HfApi) -> Iterator[str]:
    name = f"{api.whoami()['name']}/{repo_name()}"
    yield name
    api.delete_repo(name, missing_ok=True)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each test has a cache, a token file and a home of its own."""
    home = tmp_path_factory.mktemp("hf-home")
    paths = {
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }
    with ExitStack() as stack:
        for name, value in paths.items():
            stack.enter_context(patch.object(constants, name, value))
        yield


class _Mocker:
    """The part of pytest-mock's fixture that the tests use."""

    def __init__(self, stack: ExitStack) -> None:
        from unittest import mock

        self.Mock, self.MagicMock, self.ANY, self.call = (
            mock.Mock,
            mock.MagicMock,
            mock.ANY,
            mock.call,
        )
        self.patch = _patcher(stack, patch)
        self.patch.object = _patcher(stack, patch.object)
        self.patch.dict = _patcher(stack, patch.dict)


def _patcher(stack: ExitStack, make: Any) -> Any:
    def start(*args: Any, **options: Any) -> Any:
        return stack.enter_context(make(*args, **options))

    holder = types.SimpleNamespace(start=start)
    return type("Patcher", (), {"__call__": lambda self, *a, **k: holder.start(*a, **k)})()


@pytest.fixture
def mocker() -> Iterator[_Mocker]:
    with ExitStack() as stack:
        yield _Mocker(stack)


@pytest.fixture
def cache_dir() -> Iterator[Path]:
    with SoftTemporaryDirectory() as folder:
        yield Path(folder)
