"""The embedded Hub as its server holds it: the folder, and the processes that it runs."""

from __future__ import annotations

from pathlib import Path

from hubkit.local_hub.activity import Activity
from hubkit.local_hub.apps.endpoint_manager import EndpointManager
from hubkit.local_hub.apps.jobs import JobManager
from hubkit.local_hub.apps.space_manager import SpaceManager
from hubkit.local_hub.apps.upstream import Upstream
from hubkit.local_hub.storage.store import Store


class Hub(Store):
    """A store, with its inference endpoints, jobs and Spaces.

    Attributes:
        relays: Hosts, or ``host:port``, of its owner's reverse proxies.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.activity = Activity()
        self.relays: frozenset[str] = frozenset()
        self.endpoints = EndpointManager(self)
        self.jobs = JobManager(self)
        self.spaces = SpaceManager(self)
        self.upstream = Upstream(self)

    def idle_s(self) -> float:
        """Return the seconds since the last request; 0 while a job or a Space's app runs."""
        return 0.0 if self.jobs.running() or self.spaces.running() else self.activity.idle_s()

    def close(self) -> None:
        """End the processes, finish the assemblies under way, close the files."""
        self.jobs.close()
        self.spaces.close()
        self.endpoints.close()
        self.upstream.close()
        super().close()
