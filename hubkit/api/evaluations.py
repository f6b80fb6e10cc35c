"""Evaluations, from Python: a chat model before a judge, askers compared with people, chat models
in conversation with askers, people's votes, and what datasets are like.

Each is looked up first (`chat_evaluation`, `asker_comparison`, `cross_table`), can then say what it
would ask and cost (`plan`), and runs, or resumes, with `run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hubkit import metrics
from hubkit.api import datasets
from hubkit.api.models import DEPLOYED, AddressOptions, Names, serving, terms
from hubkit.evaluation import Judged, Player, Setup, benchmarks, chat, votes
from hubkit.evaluation import verdict_report as verdicts
from hubkit.evaluation.chat import JudgeChoice, dialect_of
from hubkit.evaluation.items import Benchmark
from hubkit.evaluation.verdict_files import Format, read_verdicts, write_verdicts
from hubkit.evaluation.verdict_report import VerdictReport
from hubkit.evaluation.verdict_report import write as write_verdict_report
from hubkit.hub import Hub, connect
from hubkit.hub.places import home, judge_replies
from hubkit.judging import PromptedJudge, context_judge, question_prompts
from hubkit.pipeline import against as tables
from hubkit.pipeline import asker_scorecards, askers, require
from hubkit.pipeline.against import write as write_cross_table
from hubkit.pipeline.asker_scorecards import AskerComparison, addresses
from hubkit.pipeline.inputs import encoder
from hubkit.pipeline.rewarding import judge_refs, likelihood_of
from hubkit.progress import Progress, silent
from hubkit.recipe import Against, Deploy, Judging, judging
from hubkit.serving import ModelSpec, ServedModel
from hubkit.serving.client import key_in
from hubkit.statistics import Bootstrap
from hubkit.untrusted import JsonObject

__all__ = [
    "DEPLOYED",
    "AskerComparison",
    "ChatEvaluation",
    "ChatModels",
    "ChatTest",
    "ContextJudge",
    "DatasetChanges",
    "DialogueStats",
    "JudgeChoice",
    "StatsOptions",
    "VerdictReport",
    "addresses",
    "asker_comparison",
    "chat_evaluation",
    "cross_table",
    "dataset_changes",
    "deploy_terms",
    "dialogue_stats",
    "verdict_report",
    "vote_report",
    "write_cross_table",
    "write_verdict_report",
]


@dataclass(frozen=True)
class ChatModels:
    """Who answers, by name: ``REPO_ID[@REV]``, ``deploy:REPO_ID[@REV]``, ``URL[#MODEL]`` or a file.

    Args:
        model: Who is measured.
        against: Who it is compared with.
        user: Who words and reveals tasks that are revealed in parts.
        server: The dialect spoken at addresses; None: openai at https, else tgi.
        token_env: The environment variable that holds the key of addresses.
        deploy: The terms of endpoints that are made.
    """

    model: str
    against: str | None = None
    user: str | None = None
    server: str | None = None
    token_env: str | None = None
    deploy: Deploy | None = None


@dataclass(frozen=True)
class ChatTest:
    """What they are asked, and how it is scored.

    Args:
        benchmark: A benchmark's name, or a file of questions.
        questions: Where a named benchmark's questions are, instead of its own place.
        references: Where reference answers are, or ``none``.
        columns: What the columns of a file are called, by the names that hubkit uses.
        mode: ``single``, ``pairwise``, ``criteria`` or ``checks``; None: the benchmark's.
        limit: Only so many questions, spread over the categories.
        turns: Only the first turns of each.
        max_tokens: Most tokens of an answer; None: what suits the engine.
    """

    benchmark: str = "offline-16"
    questions: str | None = None
    references: str | None = None
    columns: Mapping[str, str] | None = None
    mode: str | None = None
    limit: int | None = None
    turns: int | None = None
    max_tokens: int | None = None


class ChatEvaluation:
    """A chat model before a judge, looked up and checked.

    Attributes:
        setup: Who answers what, and who judges.
        folder: Where journals, logs and results go.
    """

    def __init__(self, setup: Setup, folder: Path, names: Names) -> None:
        self.setup, self.folder, self._names = setup, folder, names

    def plan(self) -> JsonObject:
        """Say what a run would ask and cost at most."""
        context = self.setup.block.judge.context
        return chat.plan(self.setup, self.folder, self._names.endpoints(context))

    def run(
        self,
        *,
        exports: Mapping[Format, Path] | None = None,
        serving_progress: Progress = silent,
        progress: Progress = silent,
    ) -> Judged:
        """Run it, or resume it, and write its report.

        Args:
            exports: Files that the verdicts are also written to, by form.
            serving_progress: Told how models are started.
            progress: Told how far it is.
        """

        @contextmanager
        def serve(players: Sequence[Player]) -> Iterator[list[Player]]:
            with serving(
                self._names,
                players,
                context=self.setup.block.judge.context,
                slots=2 * self.setup.in_flight,
                log_dir=self.folder,
                progress=serving_progress,
            ) as served_players:
                if self._names.models:
                    serving_progress(1, 1, "ready")
                yield served_players

        return chat.run(self.setup, self.folder, serve=serve, exports=exports, progress=progress)


def chat_evaluation(
    models: ChatModels,
    test: ChatTest,
    judge: JudgeChoice,
    *,
    prompts: str | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> ChatEvaluation:
    """Look up a chat model, a benchmark and a judge.

    Args:
        models: Who answers.
        test: What they are asked.
        judge: Who judges.
        prompts: ``default``, ``small``, or where the judge's prompts are.
        folder: Where journals, logs and results go; None: a folder of the benchmark's name.
        progress: Told what is looked up.

    Raises:
        EvalError: It could not be run as it is asked for.
        SourceError: A file or a benchmark cannot be read.
    """
    names = Names(progress)
    benchmark = benchmarks.load(
        test.benchmark,
        names.file,
        questions=test.questions,
        references=test.references,
        columns=dict(test.columns or {}),
    ).part(questions=test.limit, turns=test.turns)
    setup = _setup(models, test, judge, benchmark, prompts, names)
    setup.check()
    return ChatEvaluation(setup, folder or home() / "evals" / benchmark.name, names)


def _setup(
    models: ChatModels,
    test: ChatTest,
    judge: JudgeChoice,
    benchmark: Benchmark,
    prompts: str | None,
    names: Names,
) -> Setup:
    mode = chat.mode_for(test.mode, benchmark)
    block = judge.block()

    def player(name: str) -> Player:
        address = AddressOptions(models.server or dialect_of(name), models.token_env)
        return names.player(name, address, models.deploy, benchmark.questions)

    model = player(models.model)
    against = player(models.against) if models.against else None
    user = _trained_user(player(models.user), names) if models.user else None
    if mode == "checks":
        judging_player = Player("no judge", "none")
    else:
        judging_player = _judging_player(judge, block, models.deploy, names)
    answering = [entry for entry in (model, against) if entry]
    return Setup(
        benchmark=benchmark,
        mode=mode,
        model=model,
        against=against or chat.recorded_opponent(benchmark, mode),
        judge=judging_player,
        prompts=chat.prompts_for(prompts, names.file, judging_player),
        block=block,
        user=user,
        max_tokens=test.max_tokens or chat.answer_tokens(answering),
        in_flight=block.in_flight,
    )


def _judging_player(
    judge: JudgeChoice, block: Judging, deploy: Deploy | None, names: Names
) -> Player:
    name = f"{DEPLOYED}{judge.name}" if judge.deployed else judge.name
    return names.player(name, AddressOptions.of(block.judge), block.judge.deploy or deploy)


def _trained_user(player: Player, names: Names) -> Player:
    """A trained asker with the system message and the end mark that it was trained on."""
    if player.identity not in names.models or "@" not in player.identity:
        return player
    asker = askers.find(names.hub, player.identity.partition(" on ")[0])
    return replace(player, system=asker.system, end_mark=asker.end_mark)


def asker_comparison(
    comparison: AskerComparison, *, hub: Hub | None = None, progress: Progress = silent
) -> asker_scorecards.Prepared:
    """Look up askers and the held-out conversations at which they are compared with people.

    Args:
        comparison: Who is compared, and how.
        hub: Where they are; by default the configured Hub.
        progress: Told what is looked up.

    Raises:
        RecipeError, SourceError: It could not be run as it is asked for.
    """
    hub = hub or connect()

    def locate(name: str) -> tuple[list[Path], str | None]:
        located = datasets.find(name, hub, split="test")
        return located.files, located.revision

    return asker_scorecards.prepare(hub, comparison, locate, progress=progress)


def cross_table(
    block: Against,
    comparison: AskerComparison,
    chats: Sequence[ChatModels],
    *,
    hub: Hub | None = None,
    progress: Progress = silent,
) -> tables.CrossTableRun:
    """Look up chat models and the askers that they are to talk with.

    Args:
        block: How they talk, and what conversations are worth.
        comparison: The askers, and where openings come from.
        chats: The chat models; the first is what the others are compared with.
        hub: Where they are; by default the configured Hub.
        progress: Told what is looked up.

    Raises:
        RecipeError, SourceError: It could not be run as it is asked for.
    """
    hub = hub or connect()
    judges = judge_refs(hub, block.rewards, progress)
    prepared = asker_comparison(comparison, hub=hub, progress=progress)
    first, seed = prepared.askers[0], comparison.seed
    openings = tables.held_out_openings(
        prepared.files, block, seed=seed, intent_column=first.intent_column
    )
    run = tables.CrossTableRun(
        block,
        prepared.askers,
        [_chat_spec(models, progress) for models in chats],
        openings,
        prepared.source,
        seed,
        judges,
        likelihood_of(hub, first.ref),
    )
    run.check()
    return run


def _chat_spec(models: ChatModels, progress: Progress) -> tables.ChatSpec:
    names = Names(progress)
    address = AddressOptions(models.server or dialect_of(models.model), models.token_env)
    player = names.player(models.model, address, models.deploy)
    model = names.models.get(player.identity)
    if model is None:
        assert player.served is not None  # files of answers are refused without questions
        model = ModelSpec(player.served)
    return tables.ChatSpec(player.name, player.identity, model)


def deploy_terms(engine: str, hardware: str) -> Deploy:
    """The terms on which endpoints are made.

    Raises:
        RecipeError: The engine or the hardware is not known.
    """
    return terms(engine, hardware)


def vote_report(
    sources: Sequence[str], *, screen: votes.Screen | None = None, seed: int = 0
) -> votes.VoteReport:
    """Report what visitors of the Spaces chose.

    Args:
        sources: Datasets of votes (their ``votes/*.jsonl``), or files.
        screen: Which visitors do not count.
        seed: Draws visitors for the intervals.

    Raises:
        SourceError: A file does not hold votes.
    """
    files = [file for name in sources for file in datasets.files_of(name, "votes/*.jsonl")]
    return votes.report(files, screen=screen or votes.Screen(), bootstrap=Bootstrap(seed=seed))


def verdict_report(
    sources: Sequence[str],
    *,
    human: Path | None = None,
    gamed: Path | None = None,
    own_models: Mapping[str, str] | None = None,
    exports: Mapping[Format, Path] | None = None,
) -> VerdictReport:
    """Report what verdicts say, whoever asked for them; nothing is asked.

    Args:
        sources: Files of verdicts (see `hubkit.evaluation.verdict_files`), or datasets with
            ``verdicts-*.jsonl``.
        human: People's choices on pairs, to hold judges against.
        gamed: AlpacaEval's ``df_gamed.csv``, for its length-controlled win rate of annotations.
        own_models: Judge → the model that it is, for self-preference.
        exports: Files that the verdicts are also written to, by form.

    Raises:
        SourceError: A file does not hold verdicts.
    """
    files = [file for name in sources for file in datasets.files_of(name, "verdicts-*.jsonl")]
    for form, path in (exports or {}).items():
        write_verdicts(path, [entry for file in files for entry in read_verdicts(file)], form)
    return verdicts.report(files, votes=human, gamed=gamed, kin=own_models)


@dataclass(frozen=True)
class DialogueStats:
    """The measures of datasets, and the commit that each was read at (None for files here)."""

    report: metrics.StatsReport
    revisions: Mapping[str, str | None]


@dataclass(frozen=True)
class ContextJudge:
    """A judge who says which turns need their context.

    Args:
        url: Where it answers.
        model: Its name there.
        dialect: What is spoken there; None: openai at https, else tgi.
        token_env: The environment variable that holds its key.
        named_by: The option that names this variable, for errors.
    """

    url: str
    model: str = "tgi"
    dialect: str | None = None
    token_env: str | None = None
    named_by: str = "token_env"

    def ready(self, progress: Progress) -> metrics.Judge:
        """The judge, to be asked; its replies are kept.

        Raises:
            RecipeError: The environment variable is not set.
        """
        dialect = self.dialect or dialect_of(self.url)
        seat = {
            "repo": self.url,
            "endpoints": [self.url],
            "profile": dialect,
            "model": self.model,
            "sampling": {"temperature": 0.0},
        }
        token = key_in(self.token_env, said_by=self.named_by)
        judge = PromptedJudge(
            judging({"judge": seat, "in_flight": 16, "patience_s": 60.0}),
            ServedModel((self.url,), dialect, self.model, token),
            question_prompts(),
            "context-v1",
            identity=f"{self.url} {self.model}",
            run="stats",
            folder=judge_replies(),
        )
        return context_judge(judge, progress)


@dataclass(frozen=True)
class StatsOptions:
    """How datasets are measured.

    Args:
        tokenizer: A repo, a folder or a file: lengths are counted in its tokens; None: in words.
        topics: Whether turns are embedded to measure topics.
        judge: Who says which turns need their context.
        size: Dialogues measured of each.
        seed: Draws them.
    """

    tokenizer: str | None = None
    topics: bool = True
    judge: ContextJudge | None = None
    size: int = 1000
    seed: int = 42


def dialogue_stats(
    names: Sequence[str],
    folder: Path | None = None,
    *,
    baseline: str | None = None,
    options: StatsOptions | None = None,
    progress: Progress = silent,
) -> DialogueStats:
    """Measure datasets alike: turns, lengths, diversity, context, likeness, duplicates.

    Args:
        names: ``REPO[@REV][:SPLIT]`` on the Hub, or parquet files here.
        folder: Where ``stats.json`` and plots go.
        baseline: The one of `names` that real people wrote.
        options: How they are measured.
        progress: Told how far it is.

    Raises:
        SourceError, RepoMissingError: A dataset cannot be read.
    """
    options = options or StatsOptions()
    hub = connect() if datasets.needs_hub(list(names)) else None
    located = [datasets.find(name, hub) for name in names]
    report = metrics.stats(
        {entry.name: entry.files for entry in located},
        folder,
        baseline=baseline,
        helpers=metrics.Helpers(
            _tokenizer(hub, options.tokenizer, progress) if options.tokenizer else None,
            encoder(hub or connect(), progress=progress) if options.topics else None,
            options.judge.ready(progress) if options.judge else None,
        ),
        size=options.size,
        seed=options.seed,
        progress=progress,
    )
    return DialogueStats(report, {entry.name: entry.revision for entry in located})


def _tokenizer(hub: Hub | None, name: str, progress: Progress) -> Path:
    """A tokenizer's folder here, or its snapshot; on the embedded Hub, known models are
    imported."""
    if Path(name).exists():
        return Path(name)
    hub = hub or connect()
    return hub.snapshot(require(hub, name, progress=progress), allow_patterns=["tokenizer.json"])


@dataclass(frozen=True)
class DatasetChanges:
    """What changed from one version of a dataset to another, and the measures of both."""

    rows: metrics.Difference
    stats: DialogueStats


def dataset_changes(before: str, after: str, *, size: int = 1000) -> DatasetChanges:
    """Compare two versions of a dataset.

    Args:
        before: The older, as for `dialogue_stats`.
        after: The newer.
        size: Dialogues measured of each.

    Raises:
        SourceError, RepoMissingError: One cannot be read.
    """
    hub = connect() if datasets.needs_hub([before, after]) else None
    old, new = datasets.find(before, hub), datasets.find(after, hub)
    report = metrics.stats({before: old.files, after: new.files}, size=size)
    revisions = {before: old.revision, after: new.revision}
    return DatasetChanges(metrics.diff(old.files, new.files), DialogueStats(report, revisions))
