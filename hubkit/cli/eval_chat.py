"""``hubkit eval chat``: a chat model, or two, before a judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hubkit.cli import console
from hubkit.cli.model_args import DEPLOYED, HARDWARE, show_endpoints
from hubkit.cli.run import Json

if TYPE_CHECKING:
    from hubkit.cli.model_args import Names
    from hubkit.evaluation import Judged, Player, Setup
    from hubkit.evaluation.benchmarks import Benchmark, Mode
    from hubkit.judging import Prompts
    from hubkit.recipe import Judging, Published

_WEAK_JUDGE = "HuggingFaceTB/SmolLM2-135M-Instruct"
_IN_FLIGHT, _EMBEDDED_IN_FLIGHT = 8, 4
_TOKENS, _EMBEDDED_TOKENS = 1024, 96
_VERDICT_TOKENS, _EMBEDDED_VERDICT_TOKENS = 1024, 48
_MODEL = "REPO_ID[@REV] (on our engine), deploy:REPO_ID[@REV] (on an endpoint made for it), URL[#MODEL], or a file"
_SOURCE = "FILE or REPO_ID[@REV][:FILE]"

Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"{_MODEL} of answers.")]
Against = Annotated[
    str | None, typer.Option("--against", "-a", metavar="MODEL", help="Compare with this one.")
]
Name = Annotated[
    str,
    typer.Option(
        "--benchmark",
        "-b",
        help="offline-16, mt-bench, mt-bench-8, vicuna, alpaca, or a question file.",
    ),
]
Questions = Annotated[str | None, typer.Option(metavar="SOURCE", help=f"Its questions: {_SOURCE}.")]
Columns = Annotated[
    list[str],
    typer.Option(
        "--column", metavar="OURS=THEIRS", help="E.g. turns=question: what its columns are called."
    ),
]
References = Annotated[
    str | None, typer.Option(metavar="SOURCE", help=f"Reference answers: {_SOURCE}.")
]
Way = Annotated[
    str | None,
    typer.Option(help="single (grades) or pairwise (both orders); default: the benchmark's."),
]
JudgeName = Annotated[
    str, typer.Option(metavar="MODEL", help="Who judges: URL[#MODEL], REPO_ID, or deploy:REPO_ID.")
]
Wording = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE", help=f"default, small (both ours), or {_SOURCE} in FastChat's layout."
    ),
]
Setting = Annotated[
    list[str],
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="E.g. judge.token_env=KEY, judge.usd_per_million_input=2.5.",
    ),
]
Server = Annotated[
    str, typer.Option(help="Kind of server at MODEL's URL: tgi, vllm, sglang, llamacpp, openai, …")
]
TokenEnv = Annotated[
    str | None, typer.Option(metavar="VAR", help="Environment variable with MODEL's key.")
]
Engine = Annotated[
    str, typer.Option(help="What serves deploy: models there: tgi, vllm, sglang or llamacpp.")
]
Place = Annotated[
    str, typer.Option("--hardware", help="What they run on, a row of the price table.")
]
Usd = Annotated[float | None, typer.Option(min=0, help="Stop before the judge has cost more.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="Stop before the judge took more tokens.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Only so many questions, spread over the categories.")
]
Turns = Annotated[int | None, typer.Option(min=1, help="Only the first turns of each.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Most tokens of one answer; default 1024, or 96 where our own engine answers."
    ),
]
InFlight = Annotated[int | None, typer.Option(min=1, help="Conversations at a time.")]
LogDir = Annotated[
    Path | None, typer.Option(help="Where journals, logs (for inspect view) and results go.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be asked and cost at most; ask nothing.")
]


def chat(
    model: Model,
    against: Against = None,
    benchmark: Name = "offline-16",
    questions: Questions = None,
    column: Columns = [],  # noqa: B006 - typer copies it
    references: References = None,
    mode: Way = None,
    judge: JudgeName = _WEAK_JUDGE,
    judge_prompts: Wording = None,
    setting: Setting = [],  # noqa: B006 - typer copies it
    server: Server = "tgi",
    token_env: TokenEnv = None,
    engine: Engine = "tgi",
    hardware: Place = HARDWARE,
    budget_usd: Usd = None,
    budget_tokens: Tokens = None,
    limit: Limit = None,
    turns: Turns = None,
    max_tokens: MaxTokens = None,
    in_flight: InFlight = None,
    log_dir: LogDir = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Put a chat model before a judge: grades or win rates, with intervals. Interrupted, it resumes
    where it stopped.
    """
    from hubkit.cli.model_args import AddressOptions, Names, terms
    from hubkit.evaluation import Setup, benchmarks
    from hubkit.hub import home

    way = _mode(mode, benchmark)
    with console.bars(quiet=json) as bar_for:
        names = Names(bar_for("look up"))
        found = benchmarks.load(
            benchmark,
            names.file,
            questions=questions,
            references=references,
            columns=_columns(column),
        ).part(questions=limit, turns=turns)
        block = _block(
            judge, setting, {"budget_usd": budget_usd, "budget_tokens": budget_tokens}, in_flight
        )
        on, spoken = terms(engine, hardware), AddressOptions(server, token_env)
        players = [names.player(name, spoken, on) for name in (model, against) if name]
        judging = names.player(judge, AddressOptions.of(block.judge), block.judge.deploy or on)
        setup = Setup(
            benchmark=found,
            mode=way,
            model=players[0],
            against=players[1] if against else _beside(found, way),
            judge=judging,
            prompts=_prompts(judge_prompts, names, judging),
            block=block,
            max_tokens=max_tokens
            or min(_EMBEDDED_TOKENS if p.embedded else _TOKENS for p in players),
            in_flight=block.in_flight,
        )
        setup.check()
        folder = log_dir or home() / "evals" / found.name
        if not dry_run:
            result = _judged(setup, names, folder, bar_for("judge"))
    if dry_run:
        plan = _plan(setup, folder, names.endpoints(block.judge.context))
        console.data(plan) if json else _show_plan(plan)
    else:
        console.data(result.to_dict()) if json else _show(result)


def _columns(pairs: list[str]) -> dict[str, str]:
    from hubkit.evaluation.benchmarks import COLUMNS

    mapping = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(mapping) < len(pairs) or set(mapping) - set(COLUMNS):
        raise typer.BadParameter(
            f"must be OURS=THEIRS, with OURS out of {', '.join(COLUMNS)}", param_hint="--column"
        )
    return mapping


def _block(judge: str, setting: list[str], caps: dict[str, Any], in_flight: int | None) -> Judging:
    """The judging block: what suits the kind of judge, then --set, then the caps."""
    from hubkit.errors import RecipeError
    from hubkit.recipe import judging

    served, deployed = judge.startswith(("http://", "https://")), judge.startswith(DEPLOYED)
    name = judge.partition("#")[2] or "tgi"
    longest = _VERDICT_TOKENS if served or deployed else _EMBEDDED_VERDICT_TOKENS
    seat = {
        "repo": judge.removeprefix(DEPLOYED),
        "endpoints": ["deploy" if deployed else "embedded"],
        "profile": "openai" if served else "tgi",
        "model": name if served else "tgi",
        "context": 8192,
        "sampling": {"temperature": 0.0, "max_tokens": longest},
    }
    data = {
        "judge": seat,
        "in_flight": in_flight or (_IN_FLIGHT if served or deployed else _EMBEDDED_IN_FLIGHT),
    }
    block = judging(data, setting)
    block = block.model_copy(update={name: cap for name, cap in caps.items() if cap is not None})
    prices = (block.judge.usd_per_million_input, block.judge.usd_per_million_output)
    if block.budget_usd is not None and served and not any(prices):
        raise RecipeError(
            "--budget-usd needs the judge's prices: --set judge.usd_per_million_input=… "
            "--set judge.usd_per_million_output=…"
        )
    return block


def _mode(mode: str | None, benchmark: str) -> Mode:
    from hubkit.evaluation.benchmarks import NAMED

    if mode in ("single", "pairwise"):
        return mode  # type: ignore[return-value]
    if mode is not None:
        raise typer.BadParameter(f"{mode!r} is neither single nor pairwise", param_hint="--mode")
    return NAMED[benchmark].mode if benchmark in NAMED else "single"


def _beside(benchmark: Benchmark, mode: Mode) -> Player | None:
    """In pairwise mode, answers that came with the questions stand in for a second model."""
    from hubkit.evaluation import Player

    if mode != "pairwise" or not benchmark.recorded:
        return None
    who, answers = next(iter(benchmark.recorded.items()))
    return Player(who, f"answers in {benchmark.files[0]['name']}", recorded=answers)


def _prompts(source: str | None, names: Names, judge: Player) -> Prompts:
    """The prompts of `source`; without one our own: for a judge on the embedded engine, those for
    small judges.
    """
    from hubkit.judging import default_prompts, read_prompts, small_prompts

    ours = {"default": default_prompts, "small": small_prompts}
    source = source or ("small" if judge.embedded else "default")
    return ours[source]() if source in ours else read_prompts(*names.file(source))


def _judged(setup: Setup, names: Names, folder: Path, progress: Any) -> Judged:
    from hubkit.cli.model_args import serving
    from hubkit.evaluation import judged, report

    folder.mkdir(parents=True, exist_ok=True)
    asked = [*setup.players, setup.judge]
    engine = {"context": setup.block.judge.context, "slots": 2 * setup.in_flight}
    with serving(names, asked, **engine, log_dir=folder, progress=progress) as (*answering, judge):
        against = answering[1] if setup.against else None
        served = replace(setup, model=answering[0], against=against, judge=judge)
        result = judged(served, folder, progress=progress)
    result.path.with_suffix(".md").write_text(report.markdown(result, _published()), "utf-8")
    return result


def _published() -> list[Published]:
    """The tables of every recipe that ships."""
    from hubkit.recipe import available, load

    return [entry for name in available()["recipes"] for entry in load(name).eval.published]


def _show(result: Judged) -> None:
    from hubkit.evaluation import report

    name = result.setup.benchmark.name
    console.table(
        f"{name}: {result.setup.mode}, judged by {result.setup.judge.name}", *report.table(result)
    )
    for sentence in report.sentences(result):
        console.line(sentence)
    fitting = report.fitting(_published(), name)
    for entry in fitting:
        console.table(
            f"As published, not measured here: {entry.title}", *report.published_table(entry)
        )
    for origin in dict.fromkeys(report.origin(entry) for entry in fitting):
        titles = "; ".join(entry.title for entry in fitting if report.origin(entry) == origin)
        console.line(f"{titles}. {origin}")
    console.say(
        f"wrote {result.path} and its .md; look into every answer with: inspect view --log-dir {result.logs.parent}"
    )


def _plan(setup: Setup, folder: Path, endpoints: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run would ask, which endpoints it would make, and what the judge would take if every
    answer and verdict were as long as it may be."""
    prompt = completion = 0
    answer = setup.max_tokens * (2 if setup.mode == "pairwise" else 1)
    each = setup.judgments // setup.turns
    for question in setup.benchmark.questions:
        for turn in range(len(question.turns)):
            said = sum(len(text) // 3 for text in question.turns[: turn + 1])
            prompt += each * (said + (turn + 1) * answer + 500)
            completion += each * setup.block.judge.reply_tokens
    judge = setup.block.judge
    usd = (prompt * judge.usd_per_million_input + completion * judge.usd_per_million_output) / 1e6
    return {
        **setup.to_dict(),
        "answers": setup.answers,
        "judgments": setup.judgments,
        "at_most": {"prompt_tokens": prompt, "completion_tokens": completion, "usd": round(usd, 4)},
        "endpoints": endpoints,
        "log_dir": str(folder),
    }


def _show_plan(plan: dict[str, Any]) -> None:
    limits = plan["at_most"]
    rows = [
        ["benchmark", f"{plan['benchmark']['name']}: {plan['benchmark']['questions']} questions"],
        ["answers to be played", plan["answers"]],
        ["judgments", plan["judgments"]],
        [
            "judge prompts",
            f"{plan['judge']['prompts']['source']} ({plan['judge']['prompts']['sha256'][:12]})",
        ],
        [
            "judge's tokens, at most",
            f"{limits['prompt_tokens']:,} in, {limits['completion_tokens']:,} out",
        ],
        ["US dollars, at most, retries apart", f"{limits['usd']:,.2f}"],
        ["folder", plan["log_dir"]],
    ]
    console.table("what would be asked", ["", ""], rows)
    show_endpoints(plan["endpoints"])
