"""Models that answer: what is to be asked (`ModelSpec`), served for the length of a block (`serve`)
by the local engine, an Inference Endpoint or an address (`ServedModel`), and the client that asks.
"""

from hubkit.serving.launcher import serve
from hubkit.serving.models import ModelSpec, ServedModel, spec_of
from hubkit.serving.templates import with_own_template, with_people_template

__all__ = [
    "ModelSpec",
    "ServedModel",
    "serve",
    "spec_of",
    "with_own_template",
    "with_people_template",
]
