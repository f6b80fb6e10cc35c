"""``hubkit eval chat``: a chat model, or two, before a judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console
from hubkit.cli.model_args import HARDWARE, show_endpoints
from hubkit.cli.options import Json, grouped
from hubkit.untrusted import JsonObject, count_in, number_in, object_in, objects_in, text_in

if TYPE_CHECKING:
    from hubkit.api.evaluations import ChatModels, ChatTest, JudgeChoice
    from hubkit.evaluation import Judged

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
    from hubkit.api.evaluations import chat_evaluation

    exports = exports_of(output.export)
    with console.bars(quiet=output.json) as bar_for:
        _say_terms(test, quiet=output.json)
        looking = bar_for("look up")
        evaluation = chat_evaluation(
            _models(players),
            _test(test),
            _judge(judge),
            prompts=judge.judge_prompts,
            folder=output.log_dir,
            progress=looking,
        )
        looking(1, 1, "done")
        if output.dry_run:
            plan = evaluation.plan()
        else:
            result = evaluation.run(
                exports=exports, serving_progress=bar_for("serve"), progress=bar_for("judge")
            )
    if output.dry_run:
        console.data(plan) if output.json else _show_plan(plan)
    else:
        console.data(result.to_dict()) if output.json else _show(result)


def _say_terms(test: Test, *, quiet: bool) -> None:
    from hubkit.evaluation.benchmarks import NAMED

    entry = NAMED.get(test.benchmark)
    if entry and entry.terms and not test.questions and not quiet:
        console.say(f"{test.benchmark}: {entry.terms}")


def _models(players: Players) -> ChatModels:
    from hubkit.api.evaluations import ChatModels, deploy_terms

    return ChatModels(
        players.model,
        players.against,
        players.user,
        players.server,
        players.token_env,
        deploy_terms(players.engine, players.hardware),
    )


def _test(test: Test) -> ChatTest:
    from hubkit.api.evaluations import ChatTest

    return ChatTest(
        test.benchmark,
        test.questions,
        test.references,
        _columns(test.column),
        test.mode,
        test.limit,
        test.turns,
        test.max_tokens,
    )


def _judge(judge: Judge) -> JudgeChoice:
    from hubkit.api.evaluations import DEPLOYED, JudgeChoice

    return JudgeChoice(
        judge.judge.removeprefix(DEPLOYED),
        judge.judge.startswith(DEPLOYED),
        judge.setting,
        judge.budget_usd,
        judge.budget_tokens,
        judge.in_flight,
    )


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


def _show_plan(plan: JsonObject) -> None:
    limits, judge = object_in(plan, "at_most"), object_in(plan, "judge")
    benchmark = object_in(plan, "benchmark")
    rows: list[list[object]] = [
        ["benchmark", f"{benchmark['name']}: {benchmark['questions']} questions"],
        ["answers to be played", plan["answers"]],
        ["judgments", plan["judgments"]],
    ]
    if judge:
        prompts = object_in(judge, "prompts")
        rows += [
            ["judge prompts", f"{prompts['source']} ({text_in(prompts, 'sha256')[:12]})"],
            [
                "judge's tokens, at most",
                f"{count_in(limits, 'prompt_tokens'):,} in, "
                f"{count_in(limits, 'completion_tokens'):,} out",
            ],
            ["maximum cost in USD, excluding retries", f"{number_in(limits, 'usd'):,.2f}"],
        ]
    console.table("what would be asked", ["", ""], [*rows, ["folder", plan["log_dir"]]])
    show_endpoints(objects_in(plan, "endpoints"))
