"""Gather ``results/*.json`` into bench.json, and write its figures down: ``python
tests/bench/readme.py``.

They go into README.md and docs/*.md, between markers, and into BENCHMARKS.md, which is nothing
else.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from figures import GATHERED, RESULTS, ROOT, gather, tables

from hubkit.evaluation.utility import curve_table
from hubkit.statistics import noise

Figures = Mapping[str, Any]
PAGE = ROOT / "BENCHMARKS.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PICTURES = (
    "pipeline.svg",
    "demo.svg",
    "learning_curve.png",
    "study_desk.png",
    "study_desk_curve.png",
)
HEAD = """# What was measured

Written by `make bench`, `make bench-demo`, `make bench-curve`, `make conformance`, `make attack` and `make chaos` out of
`tests/bench/bench.json`. A figure is a median; where something ran more than once, the least and the most stand beside
it. What is compared ran turn about on the same machine. Units stand in the names; a load beside the date is what the
machine had to do just then.
"""  # noqa: E501


def demo(found: Figures) -> str:
    """The whole loop, each recipe."""
    lines = [
        f"{_machine(found['demo'])}:",
        "",
        "| recipe | runs | minutes | CPU minutes | a second run, s | dialogues kept "
        "| asker: nats per human-turn token, less its base | chat: "
        "nats per assistant-turn token, less its base |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_demo_row(name, recipe) for name, recipe in found["demo"]["recipes"].items()]
    return "\n".join([*lines, *_seeds(found.get("seeds"))])


def _seeds(found: Figures | None) -> list[str]:
    """Whether runs that differ in their seed alone agree, a seat a line."""
    if found is None:
        return []
    names = " and ".join(found["runs"])
    lines = ["", f"The same loop of `{found['recipe']}` with {names} (`{found['command']}`):", ""]
    for pair in found["agreement"]:
        seen = " and ".join(
            _difference(found["runs"][name][pair["seat"]]["trained_less_base"])
            for name in pair["runs"]
        )
        lines.append(
            f"- {pair['seat']}: {seen}; {abs(pair['apart']):.3f} apart, where chance allows "
            f"{pair['allowed']:.3f}: they {'agree' if pair['agree'] else 'do not agree'}"
        )
    return lines


def _demo_row(name: str, recipe: Figures) -> str:
    seconds, again, kept = (
        recipe["seconds"],
        recipe["again_s"]["median"],
        recipe["dialogues_kept"]["median"],
    )
    losses = " | ".join(
        _difference(recipe["held_out"][seat]["trained_less_base"]) for seat in ("asker", "chat")
    )
    return (
        f"| {name} | {seconds['runs']} | {seconds['median'] / 60:.1f} | "
        f"{recipe['cpu_s']['median'] / 60:.0f} | {again:.0f} | {kept:.0f} | {losses} |"
    )


def _difference(against: Figures) -> str:
    low, high, confidence = against["low"], against["high"], against["confidence"]
    return f"{against['difference']:+.3f} ({confidence:.0%} interval {low:+.3f} to {high:+.3f})"


def _machine(figures: Figures) -> str:
    machine = figures.get("machine", {})
    gpu = machine.get("gpu") or "no GPU"
    return (
        f"{machine.get('cores')} cores of {machine.get('cpu')}, {gpu}, "
        f"Python {machine.get('python')}, {machine.get('date')}"
    )


def middle(value: Any) -> float:
    """The median of a spread; a number is its own."""
    return float(value["median"] if isinstance(value, Mapping) else value)


def hub(found: Figures) -> str:
    """The embedded Hub: the clients' own suites, and what its bench measured."""
    lines = [
        (
            "| suite | tests that reach the server | pass | "
            "on the list of what a local Hub has no use for |"
        )
    ]
    lines += ["| --- | --- | --- | --- |"]
    lines += [
        (
            f"| {name} {s['version']} | {s['reach_the_server']} | {s['passed']} | "
            f"{s['expected_failures']} |"
        )
        for name, s in found["conformance"].items()
        if "reach_the_server" in s
    ]
    bench = found["local_hub"]
    lfs, xet, commit = (
        bench["1 GiB up by lfs"],
        bench["1 GiB up by xet"],
        bench["one file into 2,000"],
    )
    peak_mib = max(lfs["server_peak_mib"], xet["server_peak_mib"])
    sentence = (
        f"1 GiB up takes {middle(lfs['upload_over_raw']):.1f} times (LFS) "
        f"and {middle(xet['upload_over_raw']):.1f} times (Xet) as long as reading, "
        "hashing, writing and syncing the same bytes in the same run, "
        f"with a server of at most {peak_mib:.0f} MiB; one file into a repo of 2,000 is committed "
        f"in {middle(commit['commit_ms']):.0f} ms (median)."
    )
    chaos = found["chaos"]
    killed = (
        f"`make chaos`: {chaos['kills']} kills in {chaos['tests']} tests, "
        f"of which {chaos['passed']} passed."
    )
    return "\n".join([*lines, "", f"{killed} {sentence}"])


def attacks(found: Figures) -> str:
    """Every attack: how often it was tried, and how often what it aims at held."""
    if "attack" not in found:
        return "Not run yet."
    found = found["attack"]
    lines = ["| attack or accident | tried | held |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {row['tried']} | {row['held']} |" for name, row in found["by attack"].items()
    ]
    sentence = f"{found['held']} of {found['tried']} held, on {_machine(found)}."
    return "\n".join([*lines, "", sentence])


def damage(found: Figures) -> str:
    """What damage to each kind of stored file came to, and what was killed."""
    found = found["chaos"]
    if "damaged files of the embedded Hub" not in found:
        return "Not run yet."
    lines = [
        "| file of the embedded Hub | damage named | without effect |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {kind} | {row['named']} | {row['harmless']} |"
        for kind, row in found["damaged files of the embedded Hub"].items()
    ]
    sentence = (
        f"{found['kills']} kills in {found['tests']} tests, of which {found['passed']} passed, on "
        f"{_machine(found)}."
    )
    return "\n".join([*lines, "", sentence])


def steps(found: Figures) -> str:
    """What each recipe's cleaning leaves of the wheel's ShareGPT, beside the published counts."""
    from hubkit.metrics import published, step_table

    found = found["steps"]
    asked = ", ".join(found["questions"]) or "no benchmark"
    lines = [
        (
            f"`{found['source']}` through each recipe's chain (`{found['command']}`), "
            f"decontaminated against {asked}:"
        )
    ]
    for name, report in found["recipes"].items():
        columns, rows = step_table(report, name)
        lines += [
            "",
            f"| {name}: {' | '.join(columns)} |",
            "| --- |" + " ---: |" * (len(columns) - 1),
        ]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        theirs = published()["steps"].get(name)
        lines += ["", f"Published: {theirs['source']}. {theirs['caution']}"] if theirs else []
    return "\n".join(lines)


def engine(found: Figures) -> str:
    """The embedded engine beside transformers, on the same prompts in the same run."""
    found = found["local_tgi"]
    lines = [
        (
            "| in flight | embedded engine, output tokens/s | "
            "transformers `generate` batch, float32 | times |"
        )
    ]
    lines += ["| --- | --- | --- | --- |"]
    for n in (1, 8, 32):
        row = found[f"{n} in flight"]
        ours, theirs = middle(row["engine_tokens_per_s"]), middle(row["transformers_tokens_per_s"])
        times = row["engine_over_transformers"]
        spread = f"{times['least']:.1f} to {times['most']:.1f}"
        lines.append(f"| {n} | {ours:.0f} | {theirs:.0f} | {times['median']:.1f} ({spread}) |")
    start, front = found["start"], found["front, 8 in flight"]
    many = found["8 dialogues × 5 turns × both seats"]
    shares = [
        min(many[f"{kind}_share_{seat}"] for seat in ("asker", "chat"))
        for kind in ("cached", "possible")
    ]
    sentence = (
        f"Cold start (a 135M model converted) {middle(start['cold_s']):.1f} s, "
        f"warm {middle(start['warm_s']):.1f} s. Through HTTP it gives "
        f"{middle(front['http_over_direct']):.2f} of what llama.cpp gives when called directly. "
        "Two adapters of one base, eight dialogues of five turns in both seats: "
        f"{shares[0]:.0%} of prompt tokens come out of the cache, "
        f"where {shares[1]:.0%} is all that could (the rest no seat has seen before)."
    )
    return "\n".join([*lines, "", sentence])


def rollout(everything: Figures) -> str:
    """The driver beside others on one mock, and on vLLM; its memory and resume."""
    found, vllm = everything["rollout"], everything["rollout_vllm"]
    lines = ["| driver | requests/s (least to most) | CPU ms a request |", "| --- | --- | --- |"]
    for name, row in found["speed"].items():
        if isinstance(row, Mapping) and "requests_per_s" in row:
            speed, cpu_ms = row["requests_per_s"], middle(row["cpu_ms_per_request"])
            spread = f"{speed['least']:.0f} to {speed['most']:.0f}"
            lines.append(f"| {name} | {speed['median']:.0f} ({spread}) | {cpu_ms:.2f} |")
    share, memory = middle(found["speed"]["hubkit over bare aiohttp"]), found["memory"]
    sentence = (
        f"Compared with bare aiohttp: {share:.2f} (median of pairs), with every turn synced to "
        f"disk before its dialogue goes on. {memory['dialogues']:,} dialogues take at most "
        f"{memory['peak_rss_mb']} MB; resuming them, {memory['resume_s']:.1f} s."
    )
    share = vllm["share_of_plain_load_generator"]
    on_vllm = (
        f"On vLLM without a GPU ({middle(vllm['generated_tokens_per_s']):.0f} tokens/s), the speed "
        f"of a rollout is {share['median']:.2f} ({share['least']:.2f} to {share['most']:.2f}) of "
        "that of a plain generator which sends the same requests, all dialogues in step."
    )
    return "\n".join([*lines, "", sentence, "", on_vllm])


def real_servers(found: Figures) -> str:
    """Rollouts over servers of others as they are installed."""
    lines = [
        "| server | dialogues | turns of the asker that ask | on the embedded engine "
        "| standard error of the difference | dialogues lost |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found["real_servers"].items():
        if isinstance(row, Mapping) and "question_share" in row:
            lines.append(
                f"| {name} | {row['dialogues']} | {row['question_share']:.0%} of "
                f"{row['asker_turns']} | {row['question_share_of_the_embedded_engine']:.0%} | "
                f"{row['standard_error_of_the_difference']:.0%} | {row['dialogues_lost']} |"
            )
    return "\n".join([*lines, "", found["real_servers"]["about"]])


def evaluation(found: Figures) -> str:
    """A finished demo's chat model before a judge of its own size, and its asker beside people."""
    chat, asker = found["eval"]["chat"], found["eval"].get("asker")
    missing = sum(sum(model["missing"].values()) for model in chat["models"].values())
    judgments = sum(model["judgments"] for model in chat["models"].values())
    sentence = (
        f"`hubkit eval chat`: {chat['questions']} conversations of eight turns "
        f"({chat['benchmark']}) with two models, {judgments} grades by {chat['judge']} on "
        f"the embedded engine ({missing} missing), in {chat['seconds'] / 60:.1f} minutes. "
        "So small a judge shows that the evaluation runs, not which model is better."
    )
    grades = [f"| {name} | {_value(table['mean'])} | {table['mean']['n']} of {table['judgments']} |"
              for name, table in chat["models"].items()]  # fmt: skip
    judged = [
        sentence,
        "",
        "| model | mean grade of 10 | grades read |",
        "| --- | ---: | ---: |",
        *grades,
    ]
    if checks := found.get("eval_checks", {}).get("checks"):
        rates = "; ".join(
            f"{name} meets all that is asked in {_value(table['rate'])} of its answers"
            for name, table in checks["models"].items()
        )
        judged += [
            "",
            f"`hubkit eval chat -b {checks['benchmark']}`: {checks['turns']} answers in "
            f"{checks['questions']} conversations, checked by code, in "
            f"{checks['seconds'] / 60:.1f} minutes: {rates}.",
        ]
    if asker is None:
        return "\n".join(judged)
    sentence = (
        f"`hubkit eval asker`, at {asker['contexts']} held-out contexts, "
        f"in {asker['seconds'] / 60:.1f} minutes:"
    )
    return "\n".join([*judged, "", sentence, "", *_measures(asker)])


def _measures(card: Figures) -> list[str]:
    """A scorecard's measures, a column a player."""
    players = card["players"]
    measures = [
        name for name in card["titles"] if sum(name in values for values in players.values()) > 1
    ]
    lines = [f"| measure | {' | '.join(players)} |", "| --- |" + " ---: |" * len(players)]
    for name in measures:
        cells = " | ".join(_value(values.get(name)) for values in players.values())
        lines.append(f"| {card['titles'][name]} | {cells} |")
    return lines


def asker_preference(found: Figures) -> str:
    """The asker before and after preference training on people's next turns, beside people."""
    found = found["asker_preference"]
    pairs = found["pairs"]
    dropped = ", ".join(f"{why.replace('_', ' ')} {n}" for why, n in pairs["dropped"].items())
    sentence = (
        f"`{found['recipe']}`: {pairs['pairs']} pairs out of {pairs['contexts']} contexts "
        f"(dropped: {dropped}), {found['steps']} steps of DPO; the chosen "
        f"turn has {pairs['length_ratio']['matched']} times the characters of the rejected one "
        f"(median; as first drawn: {pairs['length_ratio']['drawn']}). At {found['contexts']} "
        "held-out contexts, with 95 % intervals:"
    )
    return "\n".join([sentence, "", *_measures(found), "", _told_apart(found)])


def _told_apart(found: Figures) -> str:
    """Which measures' intervals before and after do not meet, and what may be said of it."""
    before, after = (found["players"][name] for name in ("before", "after"))
    both = [name for name in before if name in after and _has_interval(before[name], after[name])]
    apart = [
        f"{found['titles'][name]} ({before[name]['value']:.3g} to {after[name]['value']:.3g})"
        for name in both
        if before[name]["high"] < after[name]["low"] or after[name]["high"] < before[name]["low"]
    ]
    said = (
        f"The intervals before and after do not meet in {len(apart)} of {len(both)} measures: "
        f"{'; '.join(apart)}. Among so many, one may do so by chance."
        if apart
        else f"The intervals before and after meet in all {len(both)} measures."
    )
    return (
        f"{said} This shows that the procedure runs, with lengths matched. With so few pairs, "
        "steps and contexts, it does not show that preferring people's turns makes an asker more "
        "like people, nor that it does not; of larger askers it says nothing."
    )


def _has_interval(*values: Figures) -> bool:
    return all(value.get("low") is not None and value.get("high") is not None for value in values)


def grpo(found: Figures) -> str:
    """A GRPO step beside TRL's own script on the same openings, turn about."""
    found = found["grpo"]
    lines = [
        "| run | seconds a step | share of it in generation | tokens generated |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, label in (("hubkit", "hubkit"), ("trl", "TRL's own script")):
        step, share = found[name]["seconds_a_step"], found[name]["share_in_generation"]
        lines.append(
            f"| {label} | {step['median']:.1f} ({step['least']:.1f} to {step['most']:.1f}) | "
            f"{share['median']:.0%} | {middle(found[name]['tokens_generated']):,.0f} |"
        )
    sentence = (
        f"{found['base']}, LoRA, {found['steps']} steps of 8 answers, "
        f"{found['hubkit']['seconds_a_step']['runs']} rounds, without a GPU; conversations of one "
        "answer, as TRL's script has no asker."
    )
    return "\n".join([*lines, "", sentence])


def study(found: Figures) -> str:
    """What asking is worth: the largest study that was run, its tables and its verdicts."""
    made = found.get("study_desk") or found["study_laptop"]
    size = made["profile"].rpartition("-")[2]
    sentence = f"{_study_sizes(made)}; the teacher is {made['teacher']}. {_study_time(made)}"
    warning = ["", "At this size it shows that the study runs, and nothing about askers."]
    lines = [
        sentence, *(warning if size == "laptop" else []), "", *_titled(**made["table"]), "",
        *(f"- {sentence}." for sentence in made["verdicts"]),
    ]  # fmt: skip
    if curve := curve_table(made):
        lines += ["", *_titled(*curve)]
    return "\n".join(lines)


def study_in_short(found: Figures) -> str:
    """What asking is worth, as README says it: the arms' size, and how each of them differs on
    people's follow-ups from single turns, and the asker from the prompted base."""
    made = found.get("study_desk") or found["study_laptop"]
    sizes, pairs = made["sizes"], {}
    for entry in made["differences"]:
        pairs[entry["arm"], entry["against"]] = (
            f"{entry['value']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}], "
            f"p {entry['p_holm']:.2g}, {noise(entry['outside_noise'])}"
        )
    arms = [arm for arm, against in pairs if against == "single"]
    titles = dict(zip(["single", *arms], made["on_follow_ups"], strict=True))
    shown = all(
        entry["outside_noise"] and entry["value"] < 0
        for entry in made["differences"]
        if entry["arm"] == "asker" and entry["against"] in ("single", "prompted")
    )
    from_single = "; ".join(f"{titles[arm]} {pairs[arm, 'single']}" for arm in arms)
    asked, prompted = titles["asker"].capitalize(), titles["prompted"]
    return (
        f"Students of {made['student']} learn one teacher's answers, in arms that differ only in "
        f"who asks: {sizes['dialogues_an_arm']} dialogues, {sizes['loss_tokens_a_student']:,} "
        f"loss-bearing tokens, {sizes['students'] // len(titles)} seeds each. Their loss on its "
        "answers to real people's follow-ups (nats per token; lower is better), compared with that "
        f"of single turns (95% intervals, p after Holm): {from_single}. "
        f"{asked} compared with {prompted}: {pairs['asker', 'prompted']}. "
        f"At this size the study {'shows' if shown else 'does not show'} that a trained asker "
        f"helps (`{made['command']}`; [the whole study](docs/study.md))."
    )


def _study_sizes(made: Figures) -> str:
    sizes = made["sizes"]
    return (
        f"`{made['command']}`: {sizes['dialogues_an_arm']} dialogues an arm, "
        f"{sizes['loss_tokens_a_student']:,} loss-bearing tokens a student, {sizes['students']} "
        f"students of {made['student']}"
    )


def _study_time(made: Figures) -> str:
    if made.get("ran"):
        hours = made["seconds"] / 3600
        return f"Its parts took {hours:.0f} hours in sum on {_machine(made)}: {made['ran']}."
    return f"{made['seconds'] / 60:.0f} minutes on {_machine(made)}."


def _titled(title: str, heads: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"{title}:", "",
        f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]  # fmt: skip


def _value(found: Figures | None) -> str:
    if found is None:
        return "–"
    low, high = found.get("low"), found.get("high")
    return f"{found['value']:.3g}" + (
        "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    )


def train(found: Figures) -> str:
    """The trainer beside stock TRL on the same rows; on a GPU, where that was measured."""
    speed_of, gpu = found["train_speed"], found.get("train_gpu")
    lines = ["| trainer | loss-bearing tokens/s | all tokens/s |", "| --- | --- | --- |"]
    for name, speed in speed_of["speed"].items():
        lines.append(f"| {name} | {speed['loss_tokens_per_s']:.0f} | {speed['tokens_per_s']:.0f} |")
    times = speed_of["times"]
    sentence = (
        f"{speed_of['base']}, LoRA, {speed_of['conversations']} conversations of the laptop's "
        f"corpus, without a GPU: {times['median']:.1f} times stock TRL's speed (median of "
        f"{times['runs']} rounds, {times['least']:.1f} to {times['most']:.1f})."
    )
    lines += ["", sentence]
    if gpu:
        lines += ["", "| on a GPU | tokens/s | GiB | of its peak |", "| --- | --- | --- | --- |"]
        for name, row in gpu["shapes"].items():
            share = f"{row['utilisation']:.0%}" if row["utilisation"] else "not known"
            lines.append(
                f"| {name}, {row['device']} | {row['tokens/s']:,.0f} | {row['GiB']:.0f} | {share} |"
            )
    return "\n".join(lines)


def plans(found: Figures) -> str:
    """The papers at full scale: hours and dollars of every stage, each recipe."""
    from hubkit.pipeline.stage_table import STAGES

    recipes = found["plans"]["recipes"]
    planned = {stage for plan in recipes.values() for stage in plan}
    stages = [stage.name for stage in STAGES if stage.name in planned]
    head = " | ".join(f"{name}: hours | USD" for name in recipes)
    lines = [f"| stage | {head} |", "| --- |" + " ---: | ---: |" * len(recipes)]
    for stage in [*stages, "all"]:
        cells = [
            f"{plan[stage]['hours']:.1f} | {plan[stage]['usd']:,.0f}" if stage in plan else " | "
            for plan in recipes.values()
        ]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", found["plans"]["about"]])


def templates(found: Figures) -> str:
    """Real chat templates, by where they come from, and each that is refused."""
    found = found["templates"]
    seats, rows = ("user", "assistant"), found["rows"]
    lines = [
        "| templates of | seat | templates | derived | exact | loss exact "
        "| stopped by a token | by a text |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for origin in dict.fromkeys(row["from"] for row in rows):
        some = [row for row in rows if row["from"] == origin]
        for seat in seats:
            exact = [row[seat] for row in some if row["derived"] and row[seat]["exact"]]
            counts = (
                len(some),
                sum(row["derived"] for row in some),
                len(exact),
                sum(entry["mask_exact"] for entry in exact),
                sum(entry["stop_is_token"] for entry in exact),
                sum(not entry["stop_is_token"] for entry in exact),
            )
            name = "asker" if seat == "user" else "chat"
            lines.append(f"| {origin} | {name} | {' | '.join(map(str, counts))} |")
    lines += ["", f"`{found['command']}`. Refused before anything costs:", ""]
    for row in rows:
        reasons = [row.get("refused"), *(row[s].get("refused") for s in seats if s in row)]
        if reason := next(filter(None, reasons), None):
            lines.append(f"- {row['template']}: {reason}")
    return "\n".join(lines)


def architectures(found: Figures) -> str:
    """The whole loop on tiny models, an architecture a row."""
    found = found["architectures"]
    steps = {
        "train": "LoRA", "merge": "merge", "serve": "served", "adapter_served": "adapter served",
        "rollout": "rollout, both seats", "eval": "eval", "push": "push",
        "stock_libraries": "stock libraries",
    }  # fmt: skip
    lines = [
        f"| architecture | engine | {' | '.join(steps.values())} |",
        "| --- | --- |" + " --- |" * len(steps),
    ]
    for row in found["rows"]:
        cells = " | ".join("yes" if row[step] else "no" for step in steps)
        lines.append(f"| {row['architecture']} | {row.get('engine', '')} | {cells} |")
    failed = [
        f"- {row['architecture']}: {row['failed']}" for row in found["rows"] if "failed" in row
    ]
    lines += ["", f"`{found['command']}`, on {_machine(found)}; random weights.", *failed]
    return "\n".join(lines)


def engine_architectures(found: Figures) -> str:
    """The embedded engine's speed beside transformers, an architecture a row."""
    found = found["engine_architectures"]
    half = any("generate_bfloat16_tokens_per_s" in row for row in found["rows"].values())
    head = "| architecture | engine | its output tokens/s | transformers `generate`, float32 | "
    head += "bfloat16 | times the faster | load |" if half else "times | load |"
    lines = [head, f"| --- | --- |{' ---: |' * (head.count('|') - 3)}"]
    for name, row in found["rows"].items():
        engine = row["engine"]
        times = row[f"{engine}_over_generate"]
        speeds = [f"{engine}_tokens_per_s", "generate_tokens_per_s"]
        speeds += ["generate_bfloat16_tokens_per_s"] if half else []
        cells = [f"{middle(row[speed]):.0f}" if speed in row else "" for speed in speeds]
        lines.append(
            f"| {name} | {engine} | {' | '.join(cells)} | {times['median']:.1f} "
            f"({times['least']:.1f} to {times['most']:.1f}) | {row['load']:.1f} |"
        )
    about = f"{found['about']} `{found['command']}`, on {_machine(found)}."
    return "\n".join([*lines, "", about])


BLOCKS: dict[str, Callable[[Figures], str]] = {
    "demo": demo,
    "plans": plans,
    "hub": hub,
    "attacks": attacks,
    "damage": damage,
    "engine": engine,
    "rollout": rollout,
    "real_servers": real_servers,
    "eval": evaluation,
    "train": train,
    "templates": templates,
    "architectures": architectures,
    "engine_architectures": engine_architectures,
    "grpo": grpo,
    "asker_preference": asker_preference,
    "study": study,
    "study_in_short": study_in_short,
}


OWN_TABLES: dict[str, Callable[[Figures], str]] = {
    "real_servers": real_servers,
    "attack": attacks,
    "steps": steps,
    "eval": evaluation,
    "train_speed": train,
    "templates": templates,
    "architectures": architectures,
    "engine_architectures": engine_architectures,
    "grpo": grpo,
    "asker_preference": asker_preference,
    "study_laptop": lambda found: study({"study_laptop": found["study_laptop"]}),
    "study_desk": study,
}


def filled(text: str, found: Figures) -> str:
    """`text` with every figures block written anew."""
    for name, table in BLOCKS.items():
        if f"<!-- figures: {name} -->" not in text:
            continue
        block = f"<!-- figures: {name} -->\n{table(found)}\n<!-- end figures -->"
        text = re.sub(
            rf"<!-- figures: {name} -->.*?<!-- end figures -->",
            lambda _, b=block: b,
            text,
            flags=re.DOTALL,
        )
    return text


def page(found: Figures) -> str:
    """BENCHMARKS.md: every file of results as one section."""
    return (
        "\n\n".join(
            [HEAD.strip(), *(_section(name, figures, found) for name, figures in found.items())]
        )
        + "\n"
    )


def _section(name: str, figures: Figures, found: Figures) -> str:
    machine = figures.get("machine", {})
    versions = ", ".join(
        f"{package} {version}" for package, version in machine.get("packages", {}).items()
    )
    load = f", load {machine['load_average'][0]}" if "load_average" in machine else ""
    where = f"`{figures.get('command', '')}`" + (
        f"; {_machine(figures)}{load}; {versions}." if machine else ""
    )
    body = [OWN_TABLES[name](found)] if name in OWN_TABLES else tables(figures)
    return "\n\n".join([f"## {name}", figures.get("about", ""), where, *body])


if __name__ == "__main__":
    gathered = gather()
    GATHERED.write_text(json.dumps(gathered, indent=1, ensure_ascii=False) + "\n", "utf-8")
    PAGE.write_text(page(gathered), "utf-8")
    for path in PAGES:
        if not path.is_symlink():
            path.write_text(filled(path.read_text("utf-8"), gathered), "utf-8")
    for name in PICTURES:
        shutil.copyfile(RESULTS / name, ROOT / "docs" / "images" / name)
