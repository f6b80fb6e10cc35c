"""Write the figures of ``results/*.json`` into README.md, between its markers: ``python tests/bench/readme.py``."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"


def demo() -> str:
    """The table of ``results/demo.json``."""
    found = json.loads((RESULTS / "demo.json").read_text("utf-8"))
    machine = found["machine"]
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}, no GPU, Python {machine['python']}, {machine['date']}:",
        "",
        "| recipe | runs | minutes (median) | second run, s | dialogues kept "
        "| asker: nats per human-turn token, less its base | chat: nats per assistant-turn token, less its base |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_demo_row(name, recipe) for name, recipe in found["recipes"].items()]
    return "\n".join(lines)


def _demo_row(name: str, recipe: dict[str, Any]) -> str:
    last = recipe["runs"][-1]
    kept = statistics.median(run["dialogues_kept"] for run in recipe["runs"])
    losses = " | ".join(_difference(last["held_out"][seat]["trained_less_base"]) for seat in ("asker", "chat"))
    minutes, again = recipe["seconds_median"] / 60, recipe["again_s_median"]
    return f"| {name} | {len(recipe['runs'])} | {minutes:.1f} | {again:.0f} | {kept:.0f} | {losses} |"


def _difference(against: dict[str, Any]) -> str:
    low, high, confidence = against["low"], against["high"], against["confidence"]
    return f"{against['difference']:+.3f} ({confidence:.0%} interval {low:+.3f} to {high:+.3f})"


def hub() -> str:
    """The embedded Hub: the clients' own suites, and what its bench measured."""
    suites = json.loads((ROOT / "tests" / "contract" / "figures.json").read_text("utf-8"))
    lines = ["| suite | tests that reach the server | pass | on the list of what a local Hub has no use for |"]
    lines += ["| --- | --- | --- | --- |"]
    lines += [
        f"| {name} {s['version']} | {s['reach_the_server']} | {s['passed']} | {s['expected_failures']} |"
        for name, s in suites.items()
    ]
    bench = json.loads((RESULTS / "local_hub.json").read_text("utf-8"))
    lfs, xet, commit = bench["1 GiB up by lfs"], bench["1 GiB up by xet"], bench["one file into 2,000"]
    peak_mib = max(lfs["server_peak_mib"], xet["server_peak_mib"])
    sentence = (
        f"1 GiB up takes {lfs['ratio']:.1f} times (LFS) and {xet['ratio']:.1f} times (Xet) as long as reading, "
        f"hashing, writing and syncing the same bytes in the same run, with a server of at most {peak_mib:.0f} MiB; "
        f"one file into a repo of 2,000 is committed in {commit['commit_median_ms']:.0f} ms (median)."
    )
    return "\n".join([*lines, "", sentence])


def steps() -> str:
    """What each recipe's cleaning leaves of the wheel's ShareGPT, beside the published counts."""
    from hubkit.measures import published, step_table

    found = json.loads((RESULTS / "steps.json").read_text("utf-8"))
    asked = ", ".join(found["questions"]) or "no benchmark"
    lines = [f"`{found['source']}` through each recipe's chain (`{found['command']}`), decontaminated against {asked}:"]
    for name, report in found["recipes"].items():
        columns, rows = step_table(report, name)
        lines += ["", f"| {name}: {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        theirs = published()["steps"].get(name)
        lines += ["", f"Published: {theirs['source']}. {theirs['caution']}"] if theirs else []
    return "\n".join(lines)


def engine() -> str:
    """The embedded engine beside transformers, on the same prompts in the same run."""
    found = json.loads((RESULTS / "local_tgi.json").read_text("utf-8"))
    lines = ["| in flight | embedded engine, output tokens/s | transformers `generate` batch, float32 | times |"]
    lines += ["| --- | --- | --- | --- |"]
    for n in (1, 8, 32):
        row = found[f"{n} in flight"]
        ours, theirs = row["engine_tokens_per_s"], row["transformers_tokens_per_s"]
        spread = f"{row['lowest_ratio']:.1f} to {row['highest_ratio']:.1f}"
        lines.append(f"| {n} | {ours:.0f} | {theirs:.0f} | {row['ratio']:.1f} ({spread}) |")
    start, front = found["start"], found["front, 8 in flight"]
    many = found["8 dialogues × 5 turns × both seats"]
    shares = [min(many[f"{kind}_share_{seat}"] for seat in ("asker", "chat")) for kind in ("cached", "possible")]
    sentence = (
        f"Cold start (a 135M model converted) {start['cold_s']:.1f} s, warm {start['warm_s']:.1f} s. Through HTTP it "
        f"gives {front['share']:.2f} of what llama.cpp gives when called directly. Two adapters of one base, eight "
        f"dialogues of five turns in both seats: {shares[0]:.0%} of prompt tokens come out of the cache, where "
        f"{shares[1]:.0%} is all that could (the rest no seat has seen before)."
    )
    return "\n".join([*lines, "", sentence])


def rollout() -> str:
    """The driver beside others on one mock; its memory and resume."""
    found = json.loads((RESULTS / "rollout.json").read_text("utf-8"))
    lines = ["| driver | requests/s (least to most) | CPU ms a request |", "| --- | --- | --- |"]
    for name, row in found["speed"].items():
        if isinstance(row, dict) and "requests_per_s" in row:
            spread = f"{row['least']} to {row['most']}"
            lines.append(f"| {name} | {row['requests_per_s']} ({spread}) | {row['cpu_ms_per_request']:.2f} |")
    share, memory = found["speed"]["hubkit over bare aiohttp, median of pairs"], found["memory"]
    sentence = (
        f"Beside bare aiohttp: {share:.2f} (median of pairs), with every turn synced to disk before its dialogue "
        f"goes on. {memory['dialogues']:,} dialogues take at most {memory['peak_rss_mb']} MB; going on with them, "
        f"{memory['resume_s']:.1f} s."
    )
    return "\n".join([*lines, "", sentence])


def evaluation() -> str:
    """A finished demo's chat model before a judge of its own size, and its asker beside people."""
    found = json.loads((RESULTS / "eval.json").read_text("utf-8"))
    chat, asker = found["chat"], found["asker"]
    missing = sum(sum(model["missing"].values()) for model in chat["models"].values())
    judgments = sum(model["judgments"] for model in chat["models"].values())
    sentence = (
        f"`hubkit eval chat`: {chat['questions']} conversations of eight turns ({chat['benchmark']}) with two models, "
        f"{judgments} grades by {chat['judge']} on the embedded engine ({missing} missing), in "
        f"{chat['seconds'] / 60:.1f} minutes. So small a judge shows that the machine works, not who is better. "
        f"`hubkit eval asker`, at {asker['contexts']} held-out contexts, in {asker['seconds'] / 60:.1f} minutes:"
    )
    players = asker["players"]
    measures = [name for name in asker["titles"] if sum(name in values for values in players.values()) > 1]
    lines = [f"| measure | {' | '.join(players)} |", "| --- |" + " ---: |" * len(players)]
    for name in measures:
        cells = " | ".join(_value(values.get(name)) for values in players.values())
        lines.append(f"| {asker['titles'][name]} | {cells} |")
    return "\n".join([sentence, "", *lines])


def _value(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    low, high = found.get("low"), found.get("high")
    return f"{found['value']:.3g}" + ("" if low is None or high is None else f" ({low:.3g} to {high:.3g})")


def train() -> str:
    """The trainer beside stock TRL on the same rows; on a GPU, where that was measured."""
    found = json.loads((RESULTS / "train_speed.json").read_text("utf-8"))
    lines = ["| trainer | loss-bearing tokens/s | all tokens/s |", "| --- | --- | --- |"]
    for name, speed in found["speed"].items():
        lines.append(f"| {name} | {speed['loss_tokens_per_s']:.0f} | {speed['tokens_per_s']:.0f} |")
    sentence = (
        f"{found['base']}, LoRA, {found['conversations']} conversations of the laptop's corpus, without a GPU: "
        f"{found['times']:.1f} times stock TRL's speed (median of {found['rounds']} rounds, {found['least']:.1f} to "
        f"{found['most']:.1f})."
    )
    lines += ["", sentence]
    if (gpu := RESULTS / "train_gpu.json").exists():
        lines += ["", "| on a GPU | tokens/s | GiB | of its peak |", "| --- | --- | --- | --- |"]
        for name, row in json.loads(gpu.read_text("utf-8")).items():
            share = f"{row['utilisation']:.0%}" if row["utilisation"] else "not known"
            lines.append(f"| {name}, {row['device']} | {row['tokens/s']:,.0f} | {row['GiB']:.0f} | {share} |")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "demo": demo,
    "hub": hub,
    "steps": steps,
    "engine": engine,
    "rollout": rollout,
    "eval": evaluation,
    "train": train,
}


def filled(text: str) -> str:
    """`text` with every figures block written anew."""
    for name, table in BLOCKS.items():
        if f"<!-- figures: {name} -->" not in text:
            continue
        block = f"<!-- figures: {name} -->\n{table()}\n<!-- end figures -->"
        text = re.sub(rf"<!-- figures: {name} -->.*?<!-- end figures -->", lambda _, b=block: b, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text("utf-8")), "utf-8")
