"""Fixtures under which datasets' tests run here (its own are not in its source distribution)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from .fixtures.hub import CI_HUB_ENDPOINT, CI_HUB_USER, CI_HUB_USER_TOKEN
from .reach import pytest_runtest_logreport, pytest_runtest_logstart, pytest_sessionfinish  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    for name in ("unit", "integration", "production", "inference", "git_lfs"):
        config.addinivalue_line("markers", name)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    home = tmp_path_factory.mktemp("cache")
    for name in (
        "HF_DATASETS_CACHE",
        "HF_MODULES_CACHE",
        "DOWNLOADED_DATASETS_PATH",
        "EXTRACTED_DATASETS_PATH",
    ):
        folder = home / name.lower()
        folder.mkdir()
        monkeypatch.setattr(datasets.config, name, folder)


@pytest.fixture
def ci_hub_config(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", CI_HUB_ENDPOINT)
    monkeypatch.setattr(
        datasets.config,
        "HUB_DATASETS_URL",
        CI_HUB_ENDPOINT + "/datasets/{repo_id}/resolve/{revision}/{path}",
    )


@pytest.fixture
def set_ci_hub_access_token(ci_hub_config: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CI_HUB_USER_TOKEN)


@pytest.fixture
def cleanup_repo() -> Callable[[str], None]:
    api = HfApi(endpoint=CI_HUB_ENDPOINT, token=CI_HUB_USER_TOKEN)

    def remove(repo_id: str) -> None:
        api.delete_repo(repo_id, repo_type="dataset", missing_ok=True)

    return remove


@pytest.fixture
def temporary_repo(
    cleanup_repo: Callable[[str], None],
) -> Callable[..., AbstractContextManager[str]]:
    @contextmanager
    def make(repo_id: str | None = None) -> Iterator[str]:
        name = repo_id or f"{CI_HUB_USER}/test-dataset-{time.time_ns()}"
        try:
            yield name
        finally:
            cleanup_repo(name)

    return make


@pytest.fixture
def temporary_bucket() -> Callable[..., AbstractContextManager[str]]:
    @contextmanager
    def make() -> Iterator[str]:
        api = HfApi(endpoint=CI_HUB_ENDPOINT, token=CI_HUB_USER_TOKEN)
        yield api.create_bucket(f"{CI_HUB_USER}/test-bucket-{time.time_ns()}").bucket_id

    return make


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("one line\nanother line\n")
    return str(path)


def _text_dataset(private: bool) -> Iterator[str]:
    api = HfApi(endpoint=CI_HUB_ENDPOINT, token=CI_HUB_USER_TOKEN)
    name = f"{CI_HUB_USER}/test-text-{time.time_ns()}"
    api.create_repo(name, repo_type="dataset", private=private)
    api.upload_file(
        path_or_fileobj=b"one\ntwo\n",
        path_in_repo="data/text.txt",
        repo_id=name,
        repo_type="dataset",
    )
    if not private:
        api.update_repo_settings(name, repo_type="dataset", gated="auto")
    yield name
    api.delete_repo(name, repo_type="dataset")


@pytest.fixture
def hf_private_dataset_repo_txt_data() -> Iterator[str]:
    yield from _text_dataset(private=True)


@pytest.fixture
def hf_gated_dataset_repo_txt_data() -> Iterator[str]:
    yield from _text_dataset(private=False)
