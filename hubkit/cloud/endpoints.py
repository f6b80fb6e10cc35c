"""Inference Endpoints of one Hub: make, find, wait for, change and delete them, through
`huggingface_hub` alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from hubkit.cloud import prices
from hubkit.cloud.images import EndpointSpec, Engine, payload
from hubkit.errors import EndpointError, HubError, RecipeError
from hubkit.hub import Hub
from hubkit.hub.adapters import base_of
from hubkit.hub.network import sent_once
from hubkit.progress import Progress, silent
from hubkit.untrusted import JsonObject, count_in, list_in, object_in, text_in

Change = Literal["pause", "resume", "scale_to_zero"]
COSTING = ("initializing", "running", "updating", "updateFailed")
"""States in which the service bills (its pricing page); ``pending`` waits for hardware, for
nothing.
"""

POLL_S = 2.0


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """An endpoint as the service describes it. `usd_at_most` is what it cost if it was up ever
    since it was made.
    """

    name: str
    namespace: str
    state: str
    message: str
    url: str | None
    repo_id: str
    revision: str | None
    image: str
    hardware: str
    replicas: int
    created_at: str
    tags: tuple[str, ...]
    usd_per_hour: float
    usd_at_most: float

    @property
    def up(self) -> bool:
        """Whether it costs money now."""
        return self.state in COSTING

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return asdict(self)


def endpoint_spec(
    hub: Hub,
    repo_id: str,
    *,
    revision: str = "main",
    engine: Engine = "tgi",
    hardware: str = "nvidia-l40s-x1",
    **options: Any,
) -> EndpointSpec:
    """What serves `repo_id` at a revision: the repo itself, or, where it is an adapter, its base
    with it.

    `options` are further fields of `EndpointSpec`. Raises `RepoMissingError`, and `RecipeError` for
    unknown hardware or an adapter that does not name its base."""
    ref = hub.resolve(repo_id, revision=revision)
    flavor = prices.hardware(hardware)
    base = base_of(hub, ref)
    if base is None:
        return EndpointSpec(ref, engine, flavor, **options)
    return EndpointSpec(base, engine, flavor, adapters=(ref,), **options)


def make(hub: Hub, spec: EndpointSpec) -> EndpointStatus:
    """Create the endpoint; it is not up yet. Raises `HubError` when the service refuses, 409 when
    the name is taken.
    """
    # An adapter's engine fetches repos besides the mounted one, with the rights of whoever deploys.
    secrets = {"HF_TOKEN": hub.token} if spec.adapters and hub.token else None
    namespace = hub.namespace
    hub.check(f"the endpoint was not made on {hub.url}", {}, [json.dumps(payload(spec))])

    def send() -> EndpointStatus:
        with hub.inference() as api:
            created = api.create_inference_endpoint(
                **payload(spec), secrets=secrets, namespace=namespace, token=hub.token
            )
        return _deployed(hub, created.raw)

    with hub.translated(f"creating endpoint {spec.name}"):
        return sent_once(send, lambda: find(hub, spec.name))


def describe(hub: Hub, name: str) -> EndpointStatus:
    """The endpoint called `name` now. Raises `HubError` with status 404 when there is none."""
    with hub.translated(f"looking up endpoint {name}"), hub.inference() as api:
        endpoint = api.get_inference_endpoint(name, namespace=hub.namespace, token=hub.token)
    return _deployed(hub, endpoint.raw)


def find(hub: Hub, name: str) -> EndpointStatus | None:
    """The endpoint called `name` now; None when there is none."""
    try:
        return describe(hub, name)
    except HubError as error:
        if error.status == 404:
            return None
        raise


def listed(hub: Hub) -> list[EndpointStatus]:
    """Every endpoint of our namespace, whoever made it."""
    with hub.translated("listing endpoints"), hub.inference() as api:
        endpoints = api.list_inference_endpoints(hub.namespace, token=hub.token)
    return [_deployed(hub, endpoint.raw) for endpoint in endpoints]


def change(hub: Hub, name: str, action: Change) -> EndpointStatus:
    """Pause, resume or scale to zero. Raises `HubError`."""
    if action not in get_args(Change):
        raise ValueError(action)
    with hub.translated(f"{action.replace('_', ' ')} of endpoint {name}"), hub.inference() as api:
        endpoint = getattr(api, f"{action}_inference_endpoint")(
            name, namespace=hub.namespace, token=hub.token
        )
    return _deployed(hub, endpoint.raw)


def update(hub: Hub, name: str, spec: EndpointSpec) -> EndpointStatus:
    """Serve `spec` under the name of an existing endpoint; its engine cannot change. Raises
    `HubError`.
    """
    body: dict[str, Any] = dict(payload(spec))
    for fixed in ("name", "region", "vendor", "type"):
        del body[fixed]
    with hub.translated(f"updating endpoint {name}"), hub.inference() as api:
        endpoint = api.update_inference_endpoint(
            name, **body, namespace=hub.namespace, token=hub.token
        )
    return _deployed(hub, endpoint.raw)


def delete(hub: Hub, name: str) -> None:
    """Delete it, for good. Raises `HubError`."""
    with hub.translated(f"deleting endpoint {name}"), hub.inference() as api:
        api.delete_inference_endpoint(name, namespace=hub.namespace, token=hub.token)


def wait(
    hub: Hub, name: str, *, timeout_s: float = 1800.0, progress: Progress = silent
) -> EndpointStatus:
    """`wait_for_all` of one."""
    return wait_for_all(hub, {name: timeout_s}, progress=progress)[name]


def wait_for_all(
    hub: Hub, timeouts_s: Mapping[str, float], *, progress: Progress = silent
) -> dict[str, EndpointStatus]:
    """Until each endpoint is up and its health route answers; one that sleeps is resumed. Gives
    them by name.

    Raises `EndpointError` with the service's message as soon as one fails, or is not up after its
    time."""
    started = time.monotonic()
    up: dict[str, EndpointStatus] = {}
    resumed: set[str] = set()
    while True:
        states = []
        for name, timeout_s in timeouts_s.items():
            if name in up:
                continue
            try:
                status = _look(hub, name, resumed)
                if status.state == "running" and _healthy(hub, name):
                    up[name] = status
                    continue
                state, message = status.state, status.message
            except HubError as error:
                if error.status is not None and error.status < 500:
                    raise
                state, message = "not to be seen", str(error)
            if time.monotonic() - started > timeout_s:
                raise EndpointError(
                    f"endpoint {name} is still {state} after {timeout_s:g} "
                    f"s ({message}); its hardware may be taken: "
                    "try other hardware, or wait longer"
                )
            states.append(f"endpoint {name} is {state}")
        if not states:
            return up
        progress(time.monotonic() - started, None, ", ".join(states))
        time.sleep(POLL_S)


def _look(hub: Hub, name: str, resumed: set[str]) -> EndpointStatus:
    """The endpoint now; resumed, once, where it sleeps. Raises `EndpointError` where it failed."""
    status = describe(hub, name)
    if status.state in ("failed", "updateFailed"):
        raise EndpointError(
            f"endpoint {name} failed: {status.message}. See its log, then `hubkit deploy delete`"
        )
    if status.state in ("paused", "scaledToZero") and name not in resumed:
        change(hub, name, "resume")
        resumed.add(name)
    return status


def _healthy(hub: Hub, name: str) -> bool:
    """Whether the client's own wait, which asks the health route, ends at once."""
    from huggingface_hub.errors import InferenceEndpointError, InferenceEndpointTimeoutError

    try:
        with hub.translated(f"asking the health of endpoint {name}"), hub.inference() as api:
            api.get_inference_endpoint(name, namespace=hub.namespace, token=hub.token).wait(
                timeout=0, refresh_every=1
            )
    except (InferenceEndpointTimeoutError, InferenceEndpointError):
        return False
    return True


def _deployed(hub: Hub, raw: JsonObject) -> EndpointStatus:
    status, model, compute, provider = (
        object_in(raw, part) for part in ("status", "model", "compute", "provider")
    )
    image = object_in(model, "image") or {"huggingface": {}}
    variant = next(iter(image))
    hardware_name = "-".join(
        [
            *(text_in(provider, key) for key in ("vendor", "region")),
            *(text_in(compute, key) for key in ("instanceType", "instanceSize")),
        ]
    )
    state = text_in(status, "state")
    replicas = count_in(status, "targetReplica") or (1 if state in COSTING else 0)
    rate = usd_per_hour(hub, hardware_name) * replicas if state in COSTING else 0.0
    created_at = datetime.fromisoformat(str(status["createdAt"]))
    hours = (datetime.now(UTC) - created_at).total_seconds() / 3600
    return EndpointStatus(
        name=text_in(raw, "name"),
        namespace=hub.namespace,
        state=state,
        message=text_in(status, "message"),
        url=text_in(status, "url") or None,
        repo_id=text_in(model, "repository"),
        revision=text_in(model, "revision") or None,
        image=text_in(object_in(image, variant), "url") or variant,
        hardware=hardware_name,
        replicas=replicas,
        created_at=str(status["createdAt"]),
        tags=tuple(map(str, list_in(raw, "tags"))),
        usd_per_hour=rate,
        usd_at_most=round(usd_per_hour(hub, hardware_name) * max(1, replicas) * hours, 4),
    )


def usd_per_hour(hub: Hub, hardware_name: str) -> float:
    """A replica's price there: the table's; nothing on the embedded Hub. 0 for hardware that the
    table lacks.
    """
    if hub.embedded:
        return 0.0
    try:
        return prices.hardware(hardware_name).usd_per_hour
    except RecipeError:
        return 0.0
