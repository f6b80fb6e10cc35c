"""Somewhere bigger: models served by Hugging Face Inference Endpoints, stages run as Hub Jobs, and
what either costs.

Takes a `Hub` and what is wanted; gives running endpoints and finished jobs. Whatever costs money
here is found again: endpoints that a run holds are written down before they are made (`lease`), and
ended by whoever comes next when the run cannot."""

from hubkit.cloud.endpoints import (
    EndpointStatus,
    change,
    delete,
    describe,
    endpoint_spec,
    listed,
    make,
    update,
    wait,
)
from hubkit.cloud.images import ENGINES, EndpointSpec, Payload, payload, served_as
from hubkit.cloud.jobs import Command, Outcome, run_job
from hubkit.cloud.leases import CleanupResult, LeasedEndpoint, LeaseRequest, held, reap, reap_jobs
from hubkit.cloud.prices import Flavor, Hardware, flavor, hardware

__all__ = [
    "ENGINES",
    "CleanupResult",
    "Command",
    "EndpointSpec",
    "EndpointStatus",
    "Flavor",
    "Hardware",
    "LeaseRequest",
    "LeasedEndpoint",
    "Outcome",
    "Payload",
    "change",
    "delete",
    "describe",
    "endpoint_spec",
    "flavor",
    "hardware",
    "held",
    "listed",
    "make",
    "payload",
    "reap",
    "reap_jobs",
    "run_job",
    "served_as",
    "update",
    "wait",
]
