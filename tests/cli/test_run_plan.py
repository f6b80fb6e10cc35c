"""``hubkit run --dry-run`` refuses what the run would refuse, and says what its trainings take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from support.tiny_models import tiny_base
from typer.testing import CliRunner

from hubkit.cli import app, register_all
from hubkit.errors import PublishError, RecipeError
from hubkit.hub import connect
from hubkit.pipeline import (
    Stage,
    StageResult,
    plan,
    plan_seats,
    plan_training,
    run,
    studies,
)
from hubkit.pipeline.reinforcement_plan import plan_reinforcement
from hubkit.pipeline.runner import Planned
from hubkit.recipe import Recipe, load, load_study

Cli = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def base(hubkit_home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base of two layers on the embedded Hub."""
    folder = tiny_base(tmp_path_factory.mktemp("base"))
    return connect().commit("plans/base", folder, "A base").repo_id


def dry_run(cli: Cli, base: str, *values: str) -> CompletedProcess[str]:
    bases = [f"asker.base={base}", f"chat.base={base}", f"rollout.chat.repo={base}"]
    options = [word for value in (*bases, *values) for word in ("--set", value)]
    return cli("run", "parrot", "--profile", "laptop", "--dry-run", *options)


SHORT = ("asker.sft.max_length=256", "chat.sft.max_length=256")


def test_trainings_have_hours_and_memory(cli: Cli, base: str) -> None:
    bases = ["--set", f"asker.base={base}", "--set", f"chat.base={base}"]
    lengths = [word for value in SHORT for word in ("--set", value)]
    done = cli("run", "parrot", "--profile", "laptop", "--dry-run", "--json", *bases, *lengths)
    assert done.returncode == 0, done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)}
    assert stages["asker"]["memory_gib"] > 0 and stages["asker"]["refusals"] == []
    assert stages["corpus"]["hours"] is None


def test_a_base_that_was_never_downloaded_is_named_with_what_was_not_looked_at(base: str) -> None:
    absent = "Qwen/Qwen2.5-Coder-1.5B-Instruct"  # no test fetches it into this Hub
    values = (f"asker.base={base}", f"chat.base={absent}", f"rollout.chat.repo={absent}", *SHORT)
    options = [word for value in values for word in ("--set", value)]
    command = ["run", "parrot", "--profile", "laptop", "--dry-run", *options]
    register_all()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    unseen = f"that of {absent} was not looked at"
    said = {
        name: text
        for line in done.stderr.splitlines()
        for name, mark, text in [line.partition(": chat template: ")]
        if mark
    }
    assert said["train asker"].startswith("the family chatml")
    assert said["train chat"].startswith(unseen) and said["chat"].startswith(unseen)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("asker.lora.target_modules=[no_such_module]", "no_such_module"),
        ("asker.sft.max_length=100000", "512 positions"),
    ],
)
def test_what_a_training_would_refuse_is_refused(
    cli: Cli, base: str, value: str, sentence: str
) -> None:
    done = dry_run(cli, base, *SHORT, value)
    assert done.returncode == 1
    assert "asker cannot run: " in done.stderr and sentence in done.stderr


def test_a_base_that_is_nowhere_is_one_sentence_for_all_its_stages(cli: Cli, base: str) -> None:
    done = dry_run(cli, "nobody/nothing")
    assert done.returncode == 1
    sentences = [line for line in done.stderr.splitlines() if "nobody/nothing" in line]
    assert len(sentences) == 1 and sentences[0].startswith(
        "asker, rollout, curate, chat, eval cannot run"
    )
    assert "HUBKIT_UPSTREAM" in sentences[0]


def test_a_plan_says_how_each_seat_is_prompted_and_what_computes_it(base: str) -> None:
    values = (f"asker.base={base}", f"rollout.chat.repo={base}")
    hub, planned = connect(), [Planned("rollout", "", "to run")]
    asker, chat = plan_seats(load("parrot", overrides=values), hub, planned)
    for seat in (asker, chat):
        assert seat.engine == "llamacpp" and "LlamaForCausalLM weights are converted" in seat.reason
        assert not seat.refusals
    assert chat.model == base and "family chatml" in chat.template
    assert "«Mix flour and water.<|im_end|>»" in str(chat.row)
    done = [Planned("rollout", "", "done")]
    assert plan_seats(load("parrot", overrides=values), hub, done) == []
    adapted = [*values, "asker.lora.use_dora=true", "rollout.chat.endpoints=[http://127.0.0.1:9]"]
    asker, chat = plan_seats(load("parrot", overrides=adapted), hub, planned)
    assert asker.engine == "transformers" and "use_dora" in asker.reason
    assert chat.template == "that of its server"


def test_a_gguf_repo_takes_a_seat_with_the_template_in_its_file(base: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    repo = connect().commit("plans/gguf", tmp_path, "A model").repo_id
    values = (f"asker.base={base}", f"rollout.chat.repo={repo}")
    planned = [Planned("rollout", "", "to run")]
    _, chat = plan_seats(load("parrot", overrides=values), connect(), planned)
    assert chat.refusals == [] and chat.engine == "llamacpp", chat
    assert chat.template == "the one in its GGUF file"


def test_a_chat_seat_whose_template_is_not_proven_is_refused_with_the_way_out(
    cli: Cli, base: str, tmp_path: Path
) -> None:
    folder = tiny_base(tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages | reverse %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}",
        "utf-8",
    )
    repo = connect().commit("plans/reversed", folder, "A base").repo_id
    values = ["--set", f"asker.base={base}", "--set", f"rollout.chat.repo={repo}"]
    done = cli("rollout", "parrot", "--profile", "laptop", "--dry-run", *values)
    assert done.returncode == 1
    assert "rollout.chat: plans/reversed: the base's chat template" in done.stderr
    assert "write template: NAME" in done.stderr
    values += ["--set", "rollout.chat.template=chatml"]
    done = cli("rollout", "parrot", "--profile", "laptop", "--dry-run", *values)
    assert done.returncode == 0, done.stderr
    assert "chat: chat template: the family chatml" in done.stderr


def test_a_kind_that_may_not_be_allowed_is_refused_before_anything_runs(hubkit_home: Path) -> None:
    with pytest.raises(PublishError, match="emial"):
        plan(load("parrot", overrides=["publish.allow=[emial]"]), connect())


FILTERS = [
    ("englsh", {}, "no filter 'englsh'; did you mean 'english'?"),
    ("min_turns", {"turns": 2}, "'min_turns' has no argument 'turns'; it takes human_turns"),
    ("min_turns", {"human_turns": "two"}, "human_turns is 'two'"),
    ("max_turns", {}, "'max_turns' needs the argument 'human_turns'"),
    ("near_duplicates", {"threshold": 7}, "threshold must lie above 0 and at most 1, not 7"),
    ("cut_off_turn", {"seat": "nobody"}, "seat is 'nobody'"),
    ("decontaminate", {"wrds": 3}, "'decontaminate' has no argument 'wrds'"),
]


def overrides(base: str, folder: Path, **changes: object) -> list[str]:
    """Of a recipe over a file in `folder` whose stages have not run; dots are written ``__``."""
    (folder / "chats.jsonl").write_text("{}")
    values = {
        "corpus.sources": [{"path": str(folder / "chats.jsonl"), "license": "mit"}],
        "corpus.filters": [],
        "curate.filters": [],
        "asker.base": base,
        "rollout.chat.repo": base,
        "chat.base": base,
        "repos.corpus": "never-made",
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def refused_before_anything(loaded: Recipe, sentence: str) -> None:
    """A run of `loaded` ends with `sentence`, and no stage has begun."""
    begun: list[str] = []

    def execute(stage: Stage, *_: object) -> StageResult:
        begun.append(stage.name)
        raise AssertionError("a stage began")

    with pytest.raises(RecipeError, match=re.escape(sentence)):
        list(run(loaded, connect(), execute=execute))
    assert begun == []


@pytest.mark.parametrize("stage", ["corpus", "curate"])
@pytest.mark.parametrize(("name", "args", "sentence"), FILTERS)
def test_a_filter_that_cannot_be_made_is_told_before_the_first_stage(
    base: str, tmp_path: Path, stage: str, name: str, args: dict[str, object], sentence: str
) -> None:
    wrong = {f"{stage}__filters": [{"name": name, "args": args}]}
    loaded = load("parrot", overrides=overrides(base, tmp_path, **wrong))
    states = {planned.stage: planned.state for planned in plan(loaded, connect())}
    assert states[stage].startswith("cannot run: ") and sentence in states[stage]
    refused_before_anything(loaded, sentence)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("sft__learning_rat", 1, "chat.sft.learning_rat is not a key of SFTConfig; did you mean"),
        ("sft__optim", "adamx", "chat.sft.optim is 'adamx', and takes adamw_torch, "),
        ("sft__output_dir", "x", "chat.sft.output_dir is not for recipes"),
        ("sft__learning_rate", "fast", "chat.sft.learning_rate is 'fast', and takes a number"),
        ("lora__rank", 4, "chat.lora.rank is not a key of LoraConfig"),
        ("template", "chatlm", "chat.template is 'chatlm', which is no template: name one of base"),
    ],
)
def test_what_a_later_trainer_refuses_is_told_before_the_first_stage(
    base: str, tmp_path: Path, key: str, value: object, sentence: str
) -> None:
    wrong = {f"chat__{key}": value}
    loaded = load("parrot", profiles=["laptop"], overrides=overrides(base, tmp_path, **wrong))
    refused_before_anything(loaded, sentence)


TRAINED = {
    "asker": ("parrot", ["laptop"], "sft.packing_strategy"),
    "asker.preference": ("userlm", ["laptop", "asker-preference-laptop"], "dpo.loss_type"),
    "chat": ("parrot", ["laptop"], "sft.loss_type"),
    "preference": ("parrot", ["laptop", "capo-laptop"], "dpo.f_divergence_type"),
    "reinforce": ("parrot", ["laptop", "reinforce-laptop"], "grpo.importance_sampling_level"),
}


@pytest.mark.parametrize("path", TRAINED)
def test_a_word_that_no_trainer_knows_is_told_before_anything_is_imported(
    hubkit_home: Path, path: str
) -> None:
    """By the run, by its dry run and by that of the one stage; the base and the data, which are not
    there, are never asked for."""
    name, profiles, key = TRAINED[path]
    sentence = f"{path}.{key} is 'bdf', and takes "
    loaded = load(name, profiles=profiles, overrides=[f"{path}.{key}=bdf"])
    seen: list[str] = []

    def progress(completed: float, total: float | None = None, note: str = "") -> None:
        seen.append(note)

    with pytest.raises(RecipeError, match=re.escape(sentence)):
        list(run(loaded, connect(), progress_for=lambda _: progress))
    assert set(seen) == {"checking what every stage needs"}, "nothing was begun"
    stage = {"preference": "align"}.get(path, path.partition(".")[0])
    states = {planned.stage: planned.state for planned in plan(loaded, connect())}
    assert states[stage].startswith(f"cannot run: {sentence}"), states
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        if stage == "reinforce":
            plan_reinforcement(loaded, connect())
        else:
            plan_training(loaded, connect(), stage)


@pytest.mark.parametrize("path", ["asker", "study.student"])
def test_a_study_tells_it_too(hubkit_home: Path, path: str) -> None:
    overrides = [f"{path}.sft.loss_type=nnl"]
    loaded = load_study("utility", "parrot", profiles=["laptop"], overrides=overrides)
    sentence = re.escape(f"{path}.sft.loss_type is 'nnl', and takes nll, dft")
    for attempt in (lambda: list(studies.run(loaded, connect())),
                    lambda: studies.plan(loaded, connect())):  # fmt: skip
        with pytest.raises(RecipeError, match=sentence):
            attempt()


SEAT = {"repo": "x/y", "endpoints": ["http://127.0.0.1:9"]}
KEYED = {"judge": {**SEAT, "token_env": "NO_KEY"}}
JUDGED = [{"name": "judges", "judges": [KEYED]}]
FORMAT = [{"name": "format"}]
ASKED = {"x": KEYED["judge"]}


@pytest.mark.parametrize(
    ("stage", "wrong", "sentence"),
    [
        (
            "rollout",
            {"rollout__turns": {"kind": "choice", "weights": {"2": -1}}},
            "turns.weights must",
        ),
        ("rollout", {"rollout__mode": "intent"}, "rollout.intents is empty"),
        ("rollout", {"rollout__asker__system": None}, "rollout.asker.system is missing"),
        ("rollout", {"rollout__chat__context": 96}, "no room is left for a prompt"),
        ("rollout", {"rollout__chat__template": "chatlm"}, "rollout.chat.template is 'chatlm'"),
        (
            "rollout",
            {"rollout__budget_usd": 1, "rollout__chat__endpoints": SEAT["endpoints"]},
            "caps nothing",
        ),
        (
            "rollout",
            {"rollout__chat__endpoints": SEAT["endpoints"], "rollout__chat__token_env": "NO_KEY"},
            "rollout.chat.token_env names NO_KEY, which is not set",
        ),
        (
            "rollout",
            {
                "rollout__chat__endpoints": SEAT["endpoints"],
                "rollout__chat__headers": {"X-Key": "$NO_KEY"},
            },
            "rollout.chat.headers.X-Key names NO_KEY",
        ),
        ("asker", {"asker__template": "chatlm"}, "asker.template is 'chatlm'"),
    ],
)
def test_what_a_recipes_values_make_impossible_is_told_before_the_first_stage(
    base: str, tmp_path: Path, stage: str, wrong: dict[str, object], sentence: str
) -> None:
    loaded = load("parrot", profiles=["laptop"], overrides=overrides(base, tmp_path, **wrong))
    states = {planned.stage: planned.state for planned in plan(loaded, connect())}
    assert states[stage].startswith("cannot run: ") and sentence in states[stage], states
    refused_before_anything(loaded, sentence)


@pytest.mark.parametrize(
    ("stage", "path", "block", "seat"),
    [
        ("corpus", "corpus__intents", {"judging": KEYED}, "judging.judge"),
        ("prefer", "preference", {"chat": SEAT, "judging": KEYED}, "judging.judge"),
        ("prefer", "preference", {"chat": KEYED["judge"]}, "chat"),
        ("reinforce", "reinforce", {"rewards": JUDGED}, "rewards.0.judges.0.judge"),
        ("reinforce", "reinforce", {"askers": ASKED}, "askers.x"),
        ("eval", "eval__against", {"rewards": JUDGED}, "rewards.0.judges.0.judge"),
        ("eval", "eval__against", {"rewards": FORMAT, "askers": ASKED}, "askers.x"),
    ],
)
def test_a_key_that_is_not_set_is_told_before_the_first_stage(
    base: str, tmp_path: Path, stage: str, path: str, block: dict[str, object], seat: str
) -> None:
    loaded = load(
        "parrot", profiles=["laptop"], overrides=overrides(base, tmp_path, **{path: block})
    )
    sentence = f"{path.replace('__', '.')}.{seat}.token_env names NO_KEY, which is not set"
    states = {planned.stage: planned.state for planned in plan(loaded, connect())}
    told = [name for name, state in states.items() if sentence in state]
    assert told == [stage], states
    refused_before_anything(loaded, sentence)


def test_an_encoder_that_is_nowhere_is_told_before_the_first_stage(
    base: str, tmp_path: Path
) -> None:
    wrong = {"eval__scorecard__embedder": "nobody/nothing"}
    loaded = load("parrot", profiles=["laptop"], overrides=overrides(base, tmp_path, **wrong))
    states = {planned.stage: planned.state for planned in plan(loaded, connect())}
    assert "nobody/nothing" in states["eval"], states


def test_a_server_that_is_not_installed_is_refused_though_its_model_is_not_at_hand() -> None:
    values = ["rollout.chat.endpoints=[vllm]", "rollout.chat.engine.command=[/no/such/vllm, serve]"]
    loaded = load("parrot", profiles=["laptop"], overrides=values)
    _, chat = plan_seats(loaded, connect(), [Planned("rollout", "", "to run")])
    assert len(chat.refusals) == 1 and "/no/such/vllm is not there" in chat.refusals[0]
