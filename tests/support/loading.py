"""Every config and split of a dataset, as stock `datasets` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard


def splits_of(folder: Path, cache: Path) -> dict[tuple[str, str], Any]:
    """(config, split) → its rows, for all that the card in `folder` names; an entry of a card that
    cannot be read raises what `datasets` raises.

    A repo's folder is read as the repo itself is: both by the card's configs."""
    from datasets import load_dataset

    card = DatasetCard((folder / "README.md").read_text("utf-8"))
    configs = card.data.to_dict().get("configs") or []
    assert configs, f"the card of {folder} names no config"
    loaded = {}
    for config in configs:
        name = config["config_name"]
        whole = load_dataset(str(folder), name, cache_dir=str(cache))
        files = config["data_files"]
        named = {"train"} if isinstance(files, str) else {entry["split"] for entry in files}
        assert set(whole) == named, (folder, name)
        loaded |= {(name, split): rows for split, rows in whole.items()}
    return loaded


def datasets_of(hub: Any, names: list[str]) -> dict[str, Path]:
    """The folders of the dataset repos `names` (bare), whole, as their Hub has them now."""
    refs = {name: hub.resolve(hub.qualify(name), repo_type="dataset") for name in names}
    return {name: hub.snapshot(ref) for name, ref in refs.items()}


def formats(card: str) -> set[str]:
    """The suffixes of the files that a card's configs name: `datasets` reads all of a repo's
    configs with what reads the first."""
    configs = yaml.safe_load(card.split("---\n")[1]).get("configs") or []
    return {Path(entry["path"]).suffix for config in configs for entry in config["data_files"]}
