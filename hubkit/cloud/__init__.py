"""Somewhere bigger: models served by Hugging Face Inference Endpoints, stages run as Hub Jobs, and
what either costs.

Takes a `Hub` and what is wanted; gives running endpoints and finished jobs. Whatever costs money
here is found again: endpoints that a run holds are written down before they are made (`lease`), and
ended by whoever comes next when the run cannot."""

from hubkit.cloud.endpoints import (
    Deployed,
    change,
    delete,
    describe,
    listed,
    make,
    update,
    wait,
    wanted_for,
)
from hubkit.cloud.images import ENGINES, Payload, Wanted, payload, served_as
from hubkit.cloud.jobs import Command, Outcome, run_job
from hubkit.cloud.leases import Held, Reaped, Terms, held, reap, reap_jobs
from hubkit.cloud.prices import Flavor, Hardware, flavor, hardware

__all__ = [
    "ENGINES",
    "Command",
    "Deployed",
    "Flavor",
    "Hardware",
    "Held",
    "Outcome",
    "Payload",
    "Reaped",
    "Terms",
    "Wanted",
    "change",
    "delete",
    "describe",
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
    "wanted_for",
]
