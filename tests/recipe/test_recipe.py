"""Recipes are checked data: every value has a type, every mistake a sentence, every stage its own
digest.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hubkit.errors import RecipeError
from hubkit.recipe import STAGES, available, load

KEYED = [stage for stage in STAGES if stage != "publish"]


@pytest.mark.parametrize("name", available()["recipes"])
@pytest.mark.parametrize("profiles", [[], ["laptop"]])
def test_every_shipped_recipe_loads(name: str, profiles: list[str]) -> None:
    recipe = load(name, profiles=profiles)
    assert recipe.name == name
    assert recipe.asker.seat == "user" and recipe.chat.seat == "assistant"


@pytest.mark.parametrize("name", available()["recipes"])
def test_our_own_choices_name_keys_that_exist(name: str) -> None:
    recipe = load(name)
    for dotted in recipe.ours:
        value = recipe.model_dump()
        for part in dotted.split("."):
            assert part in value, f"{name}: ours lists {dotted}, which is no key of the recipe"
            value = value[part]


def test_the_papers_numbers_are_in_the_recipes() -> None:
    parrot, realm, userlm = load("parrot"), load("realm"), load("userlm")
    assert parrot.asker.sft["learning_rate"] == 3e-5 and parrot.asker.sft["max_length"] == 4096
    assert parrot.rollout.dialogues == 40_000
    assert realm.asker.sft["learning_rate"] == 2e-5 and realm.asker.sft["max_length"] == 2048
    assert realm.rollout.dialogues == 50_728 and realm.rollout.asker.sampling.temperature == 0.7
    assert userlm.asker.sft["learning_rate"] == 2e-5 and userlm.asker.sft["num_train_epochs"] == 2
    assert userlm.corpus.sources[0].columns.person == "hashed_ip"
    sampling = userlm.rollout.asker.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.7, 0.9, 1024)
    assert (userlm.rollout.repeat_temperature_step, userlm.rollout.retries_per_turn) == (0.05, 5)


def test_what_a_recipe_says_under_a_profile_s_name_lies_over_that_profile(tmp_path: Path) -> None:
    whole, laptop = load("userlm"), load("userlm", profiles=["laptop"])
    assert whole.corpus.intents and whole.corpus.intents.judging
    assert laptop.corpus.intents and laptop.corpus.intents.heuristic == "keywords"
    assert laptop.rollout.asker.system == laptop.asker.system != whole.asker.system
    assert laptop.corpus.sources == load("parrot").corpus.sources
    assert "min_turns" in str(load("parrot", profiles=["laptop"]).curate)
    assert "min_turns" not in str(laptop.curate)
    assert laptop.rollout.end_mark == "<|endconversation|>"  # whoever learned it ends dialogues
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: bad\nprofiles: {laptop: 3}\n", "utf-8")
    with pytest.raises(RecipeError, match="profiles must map names of profiles"):
        load(str(bad))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rollout.dialogue=3", "did you mean 'dialogues'"),
        ("rollout.dialogues=many", "rollout.dialogues"),
        ("rollout.dialogues=0", "greater than or equal to 1"),
        ("asker.seat=human", "asker.seat"),
        ("asker.seat=assistant", "asker.seat is assistant: the asker model is trained as user"),
        ("chat.seat=user", "chat.seat is user: the chat model is trained as assistant"),
        ("asker.intent_column=intent", "has it where corpus.intents says"),
        ("corpus.sources=[]", "corpus.sources"),
        ("corpus.limit=0", "greater than or equal to 1"),
        ("corpus.limit=21000", "nothing is left to train on"),
        ("asker.max_conversations=0", "greater than or equal to 1"),
        ("rollout.budget_tokens=0", "greater than or equal to 1"),
        ("rollout.max_hours=-1", "greater than or equal to 0"),
        ("rollout.max_opening_chars=0", "greater than or equal to 1"),
        ("rollout.shard_dialogues=0", "greater than or equal to 1"),
        ("rollout.chat.context=-1", "greater than or equal to 1"),
        ("rollout.chat.usd_per_million_input=-1", "greater than or equal to 0"),
        ("rollout.openings=[{path: x.json}]", "opened from the corpus alone"),
        ("no-equals-sign", "dotted.key=value"),
        ("rollout.asker.sampling.temprature=1", "did you mean 'temperature'"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_clear_sentence(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load("parrot", overrides=[override])
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'parrot'"):
        load("parot")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    for content, says in [
        (b"a: [", "not YAML"),
        (b"- 1", "mapping"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"name: x", "missing"),
    ]:
        path = tmp_path / "x.yaml"
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=says):
            load(str(path))
    with pytest.raises(RecipeError, match="no recipe"):
        load(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("changed", KEYED)
def test_a_value_changes_the_digest_of_its_own_stage_only(changed: str) -> None:
    override = {
        "corpus": "corpus.test=7",
        "asker": "asker.max_tokens=7",
        "rollout": "rollout.dialogues=7",
        "curate": "curate.filters=[]",
        "chat": "chat.max_tokens=7",
        "prefer": "preference.pairs=7",
        "reinforce": "reinforce.answers=7",
        "align": "preference.dpo.beta=0.5",
        "eval": "eval.conversations=7",
    }[changed]
    profiles = ["laptop", "capo-laptop", "reinforce-laptop"]
    before, after = (
        load("parrot", profiles=profiles),
        load("parrot", profiles=profiles, overrides=[override]),
    )
    assert [s for s in KEYED if before.digest(s) != after.digest(s)] == [changed]


def test_what_the_asker_learns_to_end_with_ends_its_dialogues() -> None:
    assert load("parrot").rollout.end_mark is None
    assert load("parrot", overrides=["asker.end_mark=<done>"]).rollout.end_mark == "<done>"


def test_a_preference_block_changes_no_other_stage_and_names_what_it_makes() -> None:
    without, with_block = (
        load("realm", profiles=["laptop"]),
        load("realm", profiles=["laptop", "capo-laptop"]),
    )
    assert without.preference is None and without.repos.aligned is None
    assert (with_block.repos.preference, with_block.repos.aligned) == (
        "realchat-preference",
        "realm-aligned",
    )
    others = [s for s in KEYED if s not in ("prefer", "align", "reinforce")]
    assert [without.digest(s) for s in others] == [with_block.digest(s) for s in others]
    with pytest.raises(ValueError, match="without a preference block"):
        without.digest("prefer")


def test_a_profile_lays_over_and_is_named() -> None:
    recipe = load("parrot", profiles=["laptop"])
    assert recipe.profile == "laptop"
    assert recipe.asker.sft["num_train_epochs"] == 1
    assert recipe.asker.system == load("parrot").asker.system


@pytest.mark.parametrize("name", available()["recipes"])
def test_no_recipe_s_data_may_hold_the_benchmarks_questions(name: str) -> None:
    recipe = load(name)
    assert {source.repo_id for source in recipe.corpus.questions.values()} == {
        "HuggingFaceH4/mt_bench_prompts",
        "tatsu-lab/alpaca_eval",
    }
    for chain in (recipe.corpus.filters, recipe.curate.filters):
        assert "decontaminate" in [step.name for step in chain]


def test_a_profile_can_take_the_benchmarks_away_and_a_user_name_files() -> None:
    assert load("parrot", profiles=["laptop"]).corpus.questions == {}
    named = load(
        "parrot", profiles=["laptop"], overrides=["corpus.questions.mt_bench.path=here.jsonl"]
    )
    assert named.corpus.questions["mt_bench"].path == "here.jsonl"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rollout.max_hours=.nan", "rollout.max_hours"),
        ("rollout.budget_usd=.inf", "rollout.budget_usd"),
        ("rollout.asker.sampling.temperature=.inf", "temperature"),
        ("rollout.turns.weights={1: .nan}", "weights"),
        ('rollout.asker.system="a \\ud83d"', "is not YAML"),
        ("corpus.sources=[{}]", "a repo_id or a path"),
        ("rollout.chat.endpoints=[gpu-1:8000]", r"no http\(s\) URL"),
        ("corpus.questions={x: {pth: 3}}", "did you mean 'path'"),
        ("rollout.intents=" + "[" * 3000, "is not YAML"),
        ("rollout.intents=2020-13-45", "is not YAML"),
    ],
)
def test_values_that_yaml_allows_and_a_run_cannot_use(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load("parrot", overrides=[override])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", [b"name: x\na: " + b"[" * 5000, b"a: 2020-13-45", b"\xff"])
def test_files_that_break_a_reader_of_yaml(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(text)
    with pytest.raises(RecipeError, match="is not YAML"):
        load(str(tmp_path / "r.yaml"))
    with pytest.raises(RecipeError):
        load("a\0.yaml")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("repos.chat=parrot-ask", "chat and asker are both 'parrot-ask': one would overwrite"),
        ("repos.results=parrot-40k", "results and dialogues are both 'parrot-40k'"),
        ("repos.chat=a b", "chat 'a b' is no name of a repo"),
        ("repos.asker=me/you/it", "asker 'me/you/it' is no name of a repo"),
        ("repos.corpus=two--dashes", "corpus 'two--dashes' is no name of a repo"),
        ("repos.corpus=ends-with-", "corpus 'ends-with-' is no name of a repo"),
    ],
)
def test_repos_that_no_hub_takes_or_that_overwrite_each_other_are_refused(
    value: str, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load("parrot", overrides=[value])


def test_a_model_and_a_dataset_may_share_a_name() -> None:
    loaded = load("parrot", overrides=["repos.corpus=me/parrot", "repos.asker=me/parrot"])
    assert loaded.repos.corpus == loaded.repos.asker == "me/parrot"
