"""``hubkit eval chat``: a chat model, or two, before a judge."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console
from hubkit.cli.model_args import DEPLOYED, HARDWARE, show_endpoints
from hubkit.cli.options import Json, grouped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubkit.cli.model_args import Names
    from hubkit.evaluation import Judged, Player, Setup
    from hubkit.evaluation.items import Benchmark

WEAK_JUDGE = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MODEL = (
    "REPO_ID[@REV] (on our engine), deploy:REPO_ID[@REV] (on an endpoint made for it), "
    "URL[#MODEL], or a file"
)
_SOURCE = "FILE or REPO_ID[@REV][:FILE]"
_KINDS = "tgi, vllm, sglang, llamacpp, openai, …"

Engine = Annotated[
    str, typer.Option(help="What serves deploy: models there: tgi, vllm, sglang or llamacpp.")
]
Place = Annotated[
    str, typer.Option("--hardware", help="What they run on, a row of the price table.")
]


@dataclass(frozen=True)
class Players:
    """Who answers, and how they are reached."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{_MODEL} of answers.")]
    against: Annotated[
        str | None,
        typer.Option("--against", "-a", metavar="MODEL", help="Compare with this one."),
    ] = None
    user: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Words and reveals tasks that are revealed in parts."),
    ] = None
    server: Annotated[
        str | None,
        typer.Option(
            help=f"Kind of server at MODEL's URL: {_KINDS}; default: openai at https, else tgi."
        ),
    ] = None
    token_env: Annotated[
        str | None, typer.Option(metavar="VAR", help="Environment variable with MODEL's key.")
    ] = None
    engine: Engine = "tgi"
    hardware: Place = HARDWARE


@dataclass(frozen=True)
class Test:
    """What they are asked, and how it is scored."""

    benchmark: Annotated[
        str,
        typer.Option(
            "--benchmark",
            "-b",
            help="offline-16, offline-checks (scored by code, without a judge), mt-bench, "
            "mt-bench-8, vicuna, alpaca, multichallenge, mt-bench-101, wildbench, multi-if, "
            "lost-in-conversation, or a question file.",
        ),
    ] = "offline-16"
    questions: Annotated[
        str | None, typer.Option(metavar="SOURCE", help=f"Its questions: {_SOURCE}.")
    ] = None
    column: Annotated[
        list[str],
        typer.Option(
            "--column",
            metavar="OURS=THEIRS",
            help="E.g. turns=question: what its columns are called.",
        ),
    ] = field(default_factory=list)
    references: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help=f"Reference answers: {_SOURCE}, or none."),
    ] = None
    mode: Annotated[
        str | None,
        typer.Option(
            help=(
                "single (grades), pairwise (both orders), criteria or checks; "
                "default: the benchmark's."
            )
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many questions, spread over the categories."),
    ] = None
    turns: Annotated[int | None, typer.Option(min=1, help="Only the first turns of each.")] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens of one answer; default 1024, or 96 where our own engine answers.",
        ),
    ] = None


@dataclass(frozen=True)
class Judge:
    """Who judges, with which prompts and caps."""

    judge: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Who judges: URL[#MODEL], REPO_ID, or deploy:REPO_ID."),
    ] = WEAK_JUDGE
    judge_prompts: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help=f"default, small (both ours), or {_SOURCE} in FastChat's layout.",
        ),
    ] = None
    setting: Annotated[
        list[str],
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="E.g. judge.token_env=KEY, judge.usd_per_million_input=2.5.",
        ),
    ] = field(default_factory=list)
    budget_usd: Annotated[
        float | None, typer.Option(min=0, help="Stop before the judge has cost more.")
    ] = None
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop before the judge took more tokens.")
    ] = None
    in_flight: Annotated[int | None, typer.Option(min=1, help="Conversations at a time.")] = None


@dataclass(frozen=True)
class Output:
    """Where results go."""

    log_dir: Annotated[
        Path | None, typer.Option(help="Where journals, logs (for inspect view) and results go.")
    ] = None
    export: Annotated[
        list[str],
        typer.Option(
            metavar="FORM=FILE",
            help="Also write the verdicts as fastchat, alpaca_eval, lm_eval or hubkit.",
        ),
    ] = field(default_factory=list)
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be asked and cost at most; ask nothing."),
    ] = False
    json: Json = False


@grouped
def chat(players: Players, test: Test, judge: Judge, output: Output) -> None:
    """Put a chat model before a judge: grades, win rates or met criteria, with intervals.
    Interrupted, it resumes where it stopped.
    """
    from hubkit.cli.model_args import Names
    from hubkit.evaluation import chat as library
    from hubkit.hub import home

    exports = exports_of(output.export)
    with console.bars(quiet=output.json) as bar_for:
        names = Names(bar_for("look up"))
        benchmark = _benchmark(test, names, quiet=output.json)
        setup = _setup(players, test, judge, benchmark, names)
        folder = output.log_dir or home() / "evals" / benchmark.name
        setup.check()
        if output.dry_run:
            plan = library.plan(setup, folder, names.endpoints(setup.block.judge.context))
        else:
            result = library.run(
                setup,
                folder,
                serve=_serve(names, setup, folder, bar_for("serve")),
                exports=exports,
                progress=bar_for("judge"),
            )
    if output.dry_run:
        console.data(plan) if output.json else _show_plan(plan)
    else:
        console.data(result.to_dict()) if output.json else _show(result)


def _benchmark(test: Test, names: Names, *, quiet: bool) -> Benchmark:
    from hubkit.evaluation import benchmarks

    entry = benchmarks.NAMED.get(test.benchmark)
    if entry and entry.terms and not test.questions and not quiet:
        console.say(f"{test.benchmark}: {entry.terms}")
    return benchmarks.load(
        test.benchmark,
        names.file,
        questions=test.questions,
        references=test.references,
        columns=_columns(test.column),
    ).part(questions=test.limit, turns=test.turns)


def _setup(players: Players, test: Test, judge: Judge, benchmark: Benchmark, names: Names) -> Setup:
    from hubkit.cli.model_args import AddressOptions, terms
    from hubkit.evaluation import Setup
    from hubkit.evaluation import chat as library

    mode = library.mode_for(test.mode, benchmark)
    block = library.JudgeChoice(
        judge.judge.removeprefix(DEPLOYED),
        judge.judge.startswith(DEPLOYED),
        judge.setting,
        judge.budget_usd,
        judge.budget_tokens,
        judge.in_flight,
    ).block()
    deploy = terms(players.engine, players.hardware)

    def player(name: str) -> Player:
        dialect = players.server or library.dialect_of(name)
        return names.player(
            name, AddressOptions(dialect, players.token_env), deploy, benchmark.questions
        )

    model = player(players.model)
    against = player(players.against) if players.against else None
    user = _user(player(players.user), names) if players.user else None
    if mode == "checks":
        judging = _no_judge()
    else:
        judging = names.player(
            judge.judge, AddressOptions.of(block.judge), block.judge.deploy or deploy
        )
    answering = [entry for entry in (model, against) if entry]
    return Setup(
        benchmark=benchmark,
        mode=mode,
        model=model,
        against=against or library.recorded_opponent(benchmark, mode),
        judge=judging,
        prompts=library.prompts_for(judge.judge_prompts, names.file, judging),
        block=block,
        user=user,
        max_tokens=test.max_tokens or library.answer_tokens(answering),
        in_flight=block.in_flight,
    )


def _user(player: Player, names: Names) -> Player:
    """A trained asker with the system message and the end mark that it was trained on."""
    from dataclasses import replace

    from hubkit.pipeline import askers

    if player.identity not in names.models or "@" not in player.identity:
        return player
    asker = askers.find(names.hub, player.identity.partition(" on ")[0])
    return replace(player, system=asker.system, end_mark=asker.end_mark)


def _no_judge() -> Player:
    from hubkit.evaluation import Player

    return Player("no judge", "none")


def _serve(names: Names, setup: Setup, folder: Path, progress: Any) -> Any:
    from hubkit.cli.model_args import serving

    @contextmanager
    def serve(players: Sequence[Player]) -> Iterator[list[Player]]:
        engine = {"context": setup.block.judge.context, "slots": 2 * setup.in_flight}
        with serving(names, players, **engine, log_dir=folder, progress=progress) as served_players:
            yield served_players

    return serve


def _columns(pairs: list[str]) -> dict[str, str]:
    from hubkit.evaluation.benchmarks import COLUMNS

    mapping = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(mapping) < len(pairs) or set(mapping) - set(COLUMNS):
        raise typer.BadParameter(
            f"must be OURS=THEIRS, with OURS out of {', '.join(COLUMNS)}", param_hint="--column"
        )
    return mapping


def exports_of(pairs: list[str]) -> Any:
    """Form → file, of ``FORM=FILE`` pairs. Raises `typer.BadParameter`."""
    from hubkit.evaluation.verdict_files import FORMATS

    exports = {form: Path(file) for form, _, file in (pair.partition("=") for pair in pairs)}
    if any(form not in FORMATS or file == Path() for form, file in exports.items()):
        raise typer.BadParameter(
            f"must be FORM=FILE, with FORM out of {', '.join(FORMATS)}", param_hint="--export"
        )
    return exports


def _show(result: Judged) -> None:
    from hubkit.evaluation import report
    from hubkit.evaluation.chat import published_tables

    name, setup = result.setup.benchmark.name, result.setup
    judge = f"judged by {setup.judge.name}" if setup.judged else "checked by code"
    console.table(f"{name}: {setup.mode}, {judge}", *report.table(result))
    for sentence in report.sentences(result):
        console.line(sentence)
    fitting = report.fitting(published_tables(), name)
    for entry in fitting:
        console.table(
            f"As published, not measured here: {entry.title}", *report.published_table(entry)
        )
    for origin in dict.fromkeys(report.origin(entry) for entry in fitting):
        titles = "; ".join(entry.title for entry in fitting if report.origin(entry) == origin)
        console.line(f"{titles}. {origin}")
    console.say(
        f"wrote {result.path} and its .md; look into every answer with: "
        f"inspect view --log-dir {result.logs.parent}"
    )


def _show_plan(plan: dict[str, Any]) -> None:
    limits, judge = plan["at_most"], plan["judge"]
    rows = [
        ["benchmark", f"{plan['benchmark']['name']}: {plan['benchmark']['questions']} questions"],
        ["answers to be played", plan["answers"]],
        ["judgments", plan["judgments"]],
    ]
    if judge:
        prompts = judge["prompts"]
        rows += [
            ["judge prompts", f"{prompts['source']} ({prompts['sha256'][:12]})"],
            [
                "judge's tokens, at most",
                f"{limits['prompt_tokens']:,} in, {limits['completion_tokens']:,} out",
            ],
            ["maximum cost in USD, excluding retries", f"{limits['usd']:,.2f}"],
        ]
    console.table("what would be asked", ["", ""], [*rows, ["folder", plan["log_dir"]]])
    show_endpoints(plan["endpoints"])
