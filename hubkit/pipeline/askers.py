"""Askers of a Hub: what each is, where it answers, and scorecards of several on held-out
conversations.

What an asker is (base, system message, end mark, the conversations it was held out from) is read
from the record that its training left in its repo, or given by hand for a repo without one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hubkit import chat_templates
from hubkit.conversation import Seat
from hubkit.errors import RecipeError
from hubkit.evaluation import Seating, heldout_loss, perplexity
from hubkit.evaluation.scorecard import (
    HeldOutFiles,
    Player,
    TuringTest,
    contexts,
    requests,
    scorecard,
)
from hubkit.hub import Hub, Ref
from hubkit.hub.places import runs
from hubkit.metrics.scorecards import BASE
from hubkit.metrics.scorecards import Scorecard as Result
from hubkit.pipeline.inputs import adapter_base, embedding, require
from hubkit.pipeline.stage import WEIGHTS
from hubkit.progress import Progress, silent
from hubkit.publishing import records
from hubkit.recipe import Evals, Scorecard, Training, content_of, digest
from hubkit.serving import (
    ModelSpec,
    ServedModel,
    inference_endpoints,
    serve,
    with_people_template,
)
from hubkit.serving.client import ClientTemplate
from hubkit.statistics import Bootstrap, Number
from hubkit.untrusted import JsonObject, parse_json

ENGINE_TOKENS = 4096
_TEXTS = ("*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, slots=True)
class AskerSpec:
    """A model that plays the human.

    Args:
        name: What results call it.
        ref: Its commit.
        model: What is served for it, and how.
        base: What it is an adapter of; None for whole weights.
        system: Its system message.
        end_mark: What it says when a conversation is over.
        intent_column: Where what a conversation's human wants is.
        data: The commit of the conversations that it was held out from.
        prompted: It keeps its own seat and is only told to play the user.
        speaks_user: It writes people's turns under its own user header; `end_mark` is then a token.
    """

    name: str
    ref: Ref
    model: ModelSpec
    base: Ref | None = None
    system: str | None = None
    end_mark: str | None = None
    intent_column: str | None = None
    data: Ref | None = None
    prompted: bool = False
    speaks_user: bool = False

    def player(self, model: ServedModel | None = None, perplexity: Number | None = None) -> Player:
        """This asker as the scorecard asks it, where it answers."""
        return Player(self.name, model, self.system, self.end_mark, self.ref.to_dict(), perplexity)


def find(
    hub: Hub,
    name: str,
    *,
    system: str | None = None,
    speaks_user: Mapping[str, str | None] | None = None,
    progress: Progress = silent,
) -> AskerSpec:
    """Look up the asker ``REPO[@REVISION]``.

    Args:
        hub: Where it is.
        name: Its repo, perhaps at a revision.
        system: The system message of repos that no asker stage made.
        speaks_user: Names of repos that write people's turns under their own user header, each with
            the token with which it ends a conversation, if it has one.
        progress: Told what is imported first.

    Raises:
        RepoMissingError: There is no such repo.
        SourceError: An adapter does not name its base.
    """
    repo, _, revision = name.partition("@")
    ref = require(hub, hub.qualify(repo), revision=revision or "main", progress=progress)
    if record := records(hub, ref).get("asker"):
        training, inputs = Training.model_validate(record["block"]), record["inputs"]
        adapted = training.gives_adapter
        base = Ref(**inputs["base"]) if adapted else None
        return AskerSpec(
            name,
            ref,
            ModelSpec(ref, base),
            base,
            training.system,
            training.end_mark,
            training.intent_column,
            Ref(**inputs["corpus"]),
        )
    base = adapter_base(hub, ref, progress=progress)
    if speaks_user and name in speaks_user:
        end_token = speaks_user[name]
        return AskerSpec(name, ref, ModelSpec(ref, base), base, system, end_token, speaks_user=True)
    return AskerSpec(name, ref, ModelSpec(ref, base), base, system, prompted=system is not None)


def addressed(urls: Sequence[str]) -> ServedModel:
    """What answers at addresses ``URL[#MODEL]`` of one model: the name is the first one's. With a
    name it is asked in vLLM's dialect, without one in TGI's."""
    name = urls[0].partition("#")[2]
    plain = [url.partition("#")[0] for url in urls]
    return ServedModel.at(*plain, dialect="vllm", name=name) if name else ServedModel.at(*plain)


def with_base(askers: Sequence[AskerSpec]) -> list[AskerSpec]:
    """`askers`, followed by the first one's base, told by that one's system message to play the
    user. It is served here, but a deployed asker's is deployed too, where the service can, on one
    endpoint with it. An asker with whole weights, or no system message, has no such base; one that
    plays already, told the same, is not added again."""
    first = askers[0]
    if first.base is None or not first.system:
        return list(askers)
    if any(a.prompted and (a.ref, a.system) == (first.base, first.system) for a in askers[1:]):
        return list(askers)
    base = replace(
        first,
        name=BASE,
        ref=first.base,
        model=ModelSpec(first.base, deploy=first.model.deploy),
        base=None,
        end_mark=None,
        prompted=True,
    )
    return [*askers, base]


def endpoints(hub: Hub, askers: Sequence[AskerSpec]) -> list[JsonObject]:
    """The endpoints that `compare` would make, and what each costs an hour."""
    hosted = inference_endpoints.hosted({a.name: a.model for a in askers}, ENGINE_TOKENS)
    return inference_endpoints.prices(hub, hosted)


def plan(
    block: Scorecard, askers: Sequence[AskerSpec], data: HeldOutFiles, *, seed: int
) -> list[JsonObject]:
    """What `compare` would ask of each: its repo, base, requests, and at most how many new
    tokens.
    """
    sampled = contexts(
        block,
        data.files,
        seed=seed,
        intent_column=askers[0].intent_column,
        without=data.passed_over,
    )
    rows: list[JsonObject] = []
    for asker in askers:
        count = requests(block, asker.player(), sampled)
        rows.append(
            {
                "name": asker.name,
                "model": str(asker.ref),
                "base": str(asker.base) if asker.base else None,
                "served": _where(asker.model),
                "requests": count,
                "tokens_at_most": count * (block.sampling.max_tokens or 0),
            }
        )
    return rows


def _where(model: ModelSpec) -> str:
    if isinstance(model.source, ServedModel):
        return ", ".join(model.source.urls)
    return "an endpoint made for it" if model.deploy else model.engine or "embedded engine"


def compare(
    hub: Hub,
    block: Scorecard,
    askers: Sequence[AskerSpec],
    data: HeldOutFiles,
    *,
    seed: int,
    losses: Evals | None,
    turing: TuringTest | None = None,
    progress: Progress = silent,
) -> Result:
    """Score `askers` on the held-out conversations in `data`.

    Replies and logs are in their `workplace`: after a kill the same call resumes from there.

    Args:
        hub: Where the askers are.
        block: How many contexts, and how turns are sampled.
        askers: Who is compared; the first one's intent column is read.
        data: Held-out conversations.
        seed: Draws contexts and turns.
        losses: With it, the perplexity of people's turns under each as well.
        turing: A judge who tells their turns from people's; None: no judge is asked.
        progress: Told how far it is.

    Raises:
        RecipeError: Two askers have one name.
    """
    names = [asker.name for asker in askers]
    if len(set(names)) < len(names):
        raise RecipeError(
            f"{', '.join(names)}: each asker needs a name of its own; give every repo once"
        )
    work = workplace(block, askers, data.files, seed)
    work.mkdir(parents=True, exist_ok=True)
    embed = embedding(hub, block.embedder, progress=progress)
    bootstrap = Bootstrap(block.resamples, seed=seed)
    perplexities = (
        _perplexities(hub, losses, askers, data.files, bootstrap, progress) if losses else {}
    )
    with serve_askers(
        hub, askers, work, progress, slots=block.in_flight, tokens=ENGINE_TOKENS
    ) as models:
        players = [asker.player(model, perplexities.get(asker.name)) for asker, model in models]
        card = scorecard(
            block,
            replace(data, intent_column=askers[0].intent_column),
            players,
            seed=seed,
            journal=work,
            embed=embed,
            turing=turing,
            progress=progress,
        )
    return with_kinds(card, askers)


def with_kinds(card: Result, askers: Sequence[AskerSpec]) -> Result:
    """`card`, which says of each of `askers` whether it was trained to play or is only told to."""
    kinds = {asker.name: "prompted base" if asker.prompted else "asker" for asker in askers}
    return replace(card, settings={**card.settings, "kinds": kinds})


def workplace(
    block: Scorecard, askers: Sequence[AskerSpec], data: Sequence[Path], seed: int
) -> Path:
    """The folder of exactly this comparison."""
    content = content_of(Scorecard, block.model_dump(mode="json"))
    facts = [content, [f"{a.name}={a.ref}" for a in askers], [str(path) for path in data], seed]
    return runs() / f"scorecard-{digest(facts)[:12]}"


@contextmanager
def serve_askers(
    hub: Hub, askers: Sequence[AskerSpec], log: Path, progress: Progress, *, slots: int, tokens: int
) -> Iterator[list[tuple[AskerSpec, ServedModel]]]:
    """Each asker where it answers, for the length of the block."""
    templates = own_seat_templates(hub, askers)
    specs = {
        asker.name: with_people_template(asker.model, hub, asker.ref, end_token=asker.end_mark)
        if asker.speaks_user
        else asker.model
        for asker in askers
    }
    with serve(hub, specs, log_dir=log, progress=progress, slots=slots, tokens=tokens) as models:
        pairs = []
        for asker in askers:
            model = models[asker.name]
            template = templates.get(asker.name) or model.template
            pairs.append((asker, replace(model, template=template)))
        yield pairs


def own_seat_templates(hub: Hub, askers: Sequence[AskerSpec]) -> dict[str, ClientTemplate]:
    """Templates for models that are told to play and have none, as bases often do: their family's,
    for their own seat.

    The server puts the beginning-of-text token in front itself, so it is left out here. Raises
    `SourceError` where the family of such a base is not known."""
    templates = {}
    for asker in askers:
        if not asker.prompted:
            continue
        folder = hub.snapshot(asker.ref, allow_patterns=_TEXTS)
        if not _has_template(folder):
            base = chat_templates.for_base(folder)
            prefix = base.layout.prefix.removeprefix(base.bos_token)
            source = replace(base, layout=replace(base.layout, prefix=prefix)).source("assistant")
            templates[asker.name] = ClientTemplate(source, {}, stops=base.stop_texts("assistant"))
    return templates


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists():
        return True
    try:
        config = parse_json((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _perplexities(
    hub: Hub,
    losses: Evals,
    askers: Sequence[AskerSpec],
    data: Sequence[Path],
    bootstrap: Bootstrap,
    progress: Progress,
) -> dict[str, Number]:
    perplexities = {}
    for asker in askers:
        weights = hub.snapshot(asker.ref, allow_patterns=WEIGHTS)
        printed: Seat | None = "assistant" if asker.prompted else None
        loss = heldout_loss(
            losses,
            hub.snapshot(asker.base, allow_patterns=WEIGHTS) if asker.base else weights,
            weights if asker.base else None,
            data,
            Seating("user", asker.system, asker.intent_column, printed),
            progress=progress,
        )
        perplexities[asker.name] = perplexity(loss.nats, loss.tokens, bootstrap)
    return perplexities
