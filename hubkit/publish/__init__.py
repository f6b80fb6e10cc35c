"""What the world sees: cards, Spaces, the collection that ties them, and the push that brings them to a Hub.

Takes a `Hub`, a recipe and the commits that its stages made; brings every repo's card, tags and Space to what those
say, and gives a `Change` for each. What would change can be asked first; what is right already is left alone.
"""

from hubkit.publish.cards import import_card, render
from hubkit.publish.facts import CardFacts, Input, Kind, from_records
from hubkit.publish.lineage import records
from hubkit.publish.lint import lint
from hubkit.publish.plan import Change
from hubkit.publish.push import Benchmark, publish

__all__ = [
    "Benchmark",
    "CardFacts",
    "Change",
    "Input",
    "Kind",
    "from_records",
    "import_card",
    "lint",
    "publish",
    "records",
    "render",
]
