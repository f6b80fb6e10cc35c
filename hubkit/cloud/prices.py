"""What hardware there is and what it costs per hour: a table that ships with its date and
sources.
"""

from __future__ import annotations

import datetime
import difflib
import functools
from dataclasses import asdict, dataclass
from importlib import resources
from typing import TypedDict

import yaml

from hubkit.errors import RecipeError
from hubkit.untrusted import JsonObject

REGIONS = {"aws": "us-east-1", "gcp": "us-east4", "azure": "eastus"}
"""The region that is meant where none is named."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a replica of an endpoint runs on. `memory_gib` is the accelerators' together, or a CPU's
    RAM.
    """

    vendor: str
    region: str
    instance_type: str
    instance_size: str
    accelerators: int
    memory_gib: float
    usd_per_hour: float

    @property
    def accelerator(self) -> str:
        """``gpu`` or ``cpu``, as the service's API calls them."""
        return "gpu" if self.accelerators else "cpu"

    def __str__(self) -> str:
        return f"{self.vendor}-{self.instance_type}-{self.instance_size}"

    def to_dict(self) -> JsonObject:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Flavor:
    """What a job runs on. `device` is a part of its accelerator's name (empty: none), `memory_gib`
    that of one.
    """

    name: str
    device: str
    devices: int
    memory_gib: float
    usd_per_hour: float


class EndpointPrices(TypedDict):
    """Vendor → instance type → size → USD an hour, accelerators, GiB of memory."""

    source: str
    billed: str
    hardware: dict[str, dict[str, dict[str, tuple[float, int, float]]]]


class JobPrices(TypedDict):
    """Flavor → USD an hour, accelerator, how many, GiB of memory of one."""

    source: str
    billed: str
    flavors: dict[str, tuple[float, str, int, float]]


class PriceTable(TypedDict):
    """The table as it ships."""

    date: datetime.date
    currency: str
    endpoints: EndpointPrices
    jobs: JobPrices


@functools.cache
def table() -> PriceTable:
    """The table as it ships: date, currency, endpoints, jobs."""
    values: PriceTable = yaml.safe_load(
        (resources.files("hubkit.cloud") / "prices.yaml").read_text("utf-8")
    )
    return values


def date() -> str:
    """The day on which the prices were read off their sources."""
    return str(table()["date"])


def hardware(name: str) -> Hardware:
    """The hardware called ``[vendor-[region-]]instance_type-size``, such as ``nvidia-l4-x1`` (on
    AWS).

    Raises `RecipeError`, which names the nearest one, for what is not in the table.
    """
    remaining = name
    vendor = next((vendor for vendor in REGIONS if remaining.startswith(f"{vendor}-")), "aws")
    remaining = remaining.removeprefix(f"{vendor}-")
    for instance_type, sizes in table()["endpoints"]["hardware"][vendor].items():
        for size, (usd, devices, memory) in sizes.items():
            if remaining == f"{instance_type}-{size}" or remaining.endswith(
                f"-{instance_type}-{size}"
            ):
                region = (
                    remaining.removesuffix(f"{instance_type}-{size}").rstrip("-") or REGIONS[vendor]
                )
                return Hardware(vendor, region, instance_type, size, devices, memory, usd)
    raise _unknown("hardware", name, [str(item) for item in all_hardware()])


def all_hardware() -> list[Hardware]:
    """Every row of the table, in its default region."""
    return [
        Hardware(vendor, REGIONS[vendor], instance_type, size, devices, memory, usd)
        for vendor, types in table()["endpoints"]["hardware"].items()
        for instance_type, sizes in types.items()
        for size, (usd, devices, memory) in sizes.items()
    ]


def flavor(name: str) -> Flavor:
    """The flavor of that name. Raises `RecipeError`, which names the nearest one."""
    rows = table()["jobs"]["flavors"]
    if name not in rows:
        raise _unknown("job flavor", name, list(rows))
    usd, device, devices, memory = rows[name]
    return Flavor(name, device, devices, memory, usd)


def _unknown(kind: str, name: str, names: list[str]) -> RecipeError:
    short = [full_name.removeprefix("aws-") for full_name in names if full_name.startswith("aws-")]
    near = difflib.get_close_matches(name, [*short, *names], n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return RecipeError(
        f"no {kind} {name!r} in the price table of {date()}{hint} Known: {', '.join(names)}"
    )
