"""Runs the pushed Spaces on this machine: by the embedded Hub, from their repos, with the embedded
engine serving their models.

Takes the embedded `Hub` and a recipe whose models and Spaces are pushed there; gives the addresses
of the pages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hubkit.errors import EngineError
from hubkit.hub import Hub, environment
from hubkit.hub.places import cache
from hubkit.progress import Progress, silent
from hubkit.publishing.spaces import SPACES
from hubkit.recipe import Recipe
from hubkit.serving import client

_START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Page:
    """A Space that runs: its repo, its page on the Hub, and the app's own address."""

    repo_id: str
    url: str
    app_url: str


@contextlib.contextmanager
def running(hub: Hub, recipe: Recipe, *, progress: Progress = silent) -> Iterator[dict[str, Page]]:
    """Serve both models and both Spaces for the length of the block: Space's name (chat, asker) →
    its page.

    `hub` must allow Spaces (``ensure_running(spaces=True)``). Raises `RepoMissingError` when
    something is not pushed and `EngineError` when engine or app does not start."""
    with contextlib.ExitStack() as stack:
        progress(0, len(SPACES) + 1, "servers · starting the engine")
        repos = {
            space.folder: hub.qualify(getattr(recipe.repos, space.named_after)) for space in SPACES
        }
        for repo_id in repos.values():
            hub.resolve(repo_id, repo_type="space")
        addresses = _engines(stack, hub, recipe)
        variables = {f"{role.upper()}_ENDPOINT": url for role, url in addresses.items()}
        for repo_id in repos.values():
            stack.enter_context(_started(hub, repo_id, variables))
        pages = {}
        for number, (name, repo_id) in enumerate(repos.items()):
            progress(number + 1, len(SPACES) + 1, f"servers · starting the {name} Space")
            pages[name] = _page(hub, repo_id)
        progress(len(SPACES) + 1, len(SPACES) + 1, "servers · the Spaces are up")
        yield pages


@contextlib.contextmanager
def _started(hub: Hub, repo_id: str, variables: Mapping[str, str]) -> Iterator[None]:
    """The Space's app with these variables and its own, started; afterwards it is paused and has
    its own again.
    """
    with hub.translated(f"starting the Space {repo_id}"):
        before = hub.api.get_space_variables(repo_id)
        for name, value in variables.items():
            hub.api.add_space_variable(repo_id, name, value)
        hub.api.restart_space(repo_id)
    try:
        yield
    finally:
        with hub.translated(f"pausing the Space {repo_id}"):
            hub.api.pause_space(repo_id)
            for name in variables:
                if name in before:
                    hub.api.add_space_variable(repo_id, name, before[name].value)
                else:
                    hub.api.delete_space_variable(repo_id, name)


def _page(hub: Hub, repo_id: str) -> Page:
    try:
        with hub.translated(f"waiting for the Space {repo_id}"):
            runtime = hub.api.wait_for_space(repo_id, timeout=_START_TIMEOUT_S, poll_interval=0.3)
            app_url = hub.api.space_info(repo_id).host
    except TimeoutError:
        raise EngineError(
            f"the Space {repo_id} did not start within {_START_TIMEOUT_S:.0f} s"
        ) from None
    if runtime.stage != "RUNNING" or app_url is None:
        why = runtime.raw.get("errorMessage") or "its log says more"
        raise EngineError(f"the Space {repo_id} did not start ({runtime.stage}): {why}")
    return Page(repo_id, f"{hub.url}/spaces/{repo_id}", app_url)


def _engines(stack: contextlib.ExitStack, hub: Hub, recipe: Recipe) -> dict[str, str]:
    """Addresses of asker, chat and base, from one engine when both are adapters of one base."""
    repos = {"asker": hub.qualify(recipe.repos.asker), "chat": hub.qualify(recipe.repos.chat)}
    env, cache_dir = environment(), cache("engine")
    shared = (
        recipe.asker.base == recipe.chat.base
        and recipe.asker.gives_adapter
        and recipe.chat.gives_adapter
    )
    if shared:
        engine = client.start_engine(
            recipe.chat.base, repos, listen=["asker", "chat", "base"], env=env, cache_dir=cache_dir
        )
        return stack.enter_context(engine).addresses
    addresses = {}
    for role, training in (("asker", recipe.asker), ("chat", recipe.chat)):
        adapters = {role: repos[role]} if training.gives_adapter else {}
        model = training.base if adapters else repos[role]
        listen = [role, "base"] if adapters else ["base"]
        started = stack.enter_context(
            client.start_engine(model, adapters, listen=listen, env=env, cache_dir=cache_dir)
        ).addresses
        addresses[role] = started[role] if adapters else started["base"]
        if role == "chat" and adapters:
            addresses["base"] = started["base"]
    return addresses
