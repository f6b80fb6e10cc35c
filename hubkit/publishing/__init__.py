"""What the world sees: cards, Spaces, the collection that ties them, and the push that brings them
to a Hub.

Takes a `Hub`, a recipe and the commits that its stages made; brings every repo's card, tags and
Space to what those say, and gives a `Change` for each. What would change can be asked first; what
is right already is left alone."""

from hubkit.publishing.card_data import CardFacts, Input, Kind, from_records
from hubkit.publishing.cards import import_card, render
from hubkit.publishing.lineage import records
from hubkit.publishing.lint import lint
from hubkit.publishing.plan import Change
from hubkit.publishing.push import Benchmark, PushOptions, publish
from hubkit.publishing.study_card import StudyResult, study_card

__all__ = [
    "Benchmark",
    "CardFacts",
    "Change",
    "Input",
    "Kind",
    "PushOptions",
    "StudyResult",
    "from_records",
    "import_card",
    "lint",
    "publish",
    "records",
    "render",
    "study_card",
]
