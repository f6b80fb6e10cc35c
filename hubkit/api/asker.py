"""An asker: a language model that plays the human side of a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from hubkit import training
from hubkit.api.conversations import Conversations
from hubkit.api.history import History, file_ref, library_folder, push
from hubkit.conversation import Message
from hubkit.errors import SourceError
from hubkit.evaluation.scorecard import HeldOutFiles
from hubkit.hub import Hub, Ref, connect
from hubkit.metrics.scorecards import Scorecard as ScorecardResult
from hubkit.pipeline import askers, require
from hubkit.pipeline.askers import AskerSpec
from hubkit.pipeline.stage import WEIGHTS
from hubkit.progress import Progress, silent
from hubkit.recipe import Evals, Sampling, Scorecard, Training
from hubkit.rollout.dialogue import split_end_mark
from hubkit.serving import ModelSpec, ServedModel, serve
from hubkit.training.loading import context_of
from hubkit.training.rows import seat_view
from hubkit.untrusted import JsonObject, parse_json, repo_name, text_in

T = TypeVar("T")
Also = Literal["base", "perplexity"]
DEFAULT_SYSTEM = (
    "You are a person who is talking with an AI assistant. Write only the next message that you, "
    "the person, would send."
)
DEFAULT_LORA: Mapping[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
DEFAULT_SFT: Mapping[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 2e-4,
    "max_length": 1024,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
}


class Asker:
    """A model that says what a person would say next.

    Its engine starts with the first turn that is asked for and runs until `close`, or until the
    ``with`` block ends.

    Example:
        >>> from hubkit import Asker
        >>> asker = Asker.from_pretrained(folder)
        >>> with asker:
        ...     turn = asker.next_turn([{"role": "user", "content": "How do I bake bread?"},
        ...                             {"role": "assistant", "content": "Mix flour and water."}])
        >>> isinstance(turn, str)
        True
    """

    def __init__(
        self,
        name: str,
        source: Ref | Path,
        base: Ref | Path | None,
        *,
        system: str | None = None,
        end_mark: str | None = None,
        intent_column: str | None = None,
        data: Ref | None = None,
        history: History | None = None,
    ) -> None:
        self.name, self.source, self.base = name, source, base
        self.system, self.end_mark, self.intent_column = system, end_mark, intent_column
        self.data = data
        self.history = history or History()
        self._running: ExitStack | None = None
        self._served: ServedModel | None = None

    @classmethod
    def train(
        cls,
        conversations: Conversations,
        *,
        base: str,
        revision: str = "main",
        system: str | None = DEFAULT_SYSTEM,
        seed: int = 42,
        progress: Progress = silent,
        **settings: Any,
    ) -> Asker:
        """Fine-tune `base` on the human turns of `conversations`.

        The same call finds the finished training, or resumes one that was killed.

        Args:
            conversations: What it is trained on, roles as recorded.
            base: A model repo, or a folder.
            revision: Branch, tag or commit of the repo.
            system: The system message that it learns to play under.
            seed: Of order and initialisation.
            progress: Told how far it is.
            settings: Further keys of a recipe's training block: `lora`, `sft`, `max_tokens`,
                `max_conversations`, `end_mark`, ...; by default LoRA over one epoch.

        Raises:
            RecipeError: A setting is not known, or has an impossible value.
            SourceError: The base or the data cannot be read.
            TrainingError: There is nothing to learn from, or the loss is not a number.
        """
        source, folder = _base(base, revision, progress)
        longest = min(DEFAULT_SFT["max_length"], context_of(folder) or DEFAULT_SFT["max_length"])
        defaults = {"lora": dict(DEFAULT_LORA), "sft": {**DEFAULT_SFT, "max_length": longest}}
        settings = {**defaults, **settings}
        block = Training(base=base, base_revision=revision, seat="user", system=system, **settings)
        data = conversations.parquet()
        ref = conversations.ref or file_ref("conversations", data)
        work = library_folder("asker", [block.model_dump(mode="json"), seed, ref.to_dict()])
        report = training.train(
            block,
            data,
            training.Base(folder, base, source.revision if isinstance(source, Ref) else None),
            work / "model",
            seed=seed,
            work=work / "scratch",
            progress=progress,
        )
        history = conversations.history.with_blocks(asker=block)
        history = replace(history, recipe=history.recipe.model_copy(update={"seed": seed}))
        base_ref = (
            source
            if isinstance(source, Ref)
            else file_ref(base, sorted(source.glob("*.safetensors")))
        )
        history = history.after(
            "asker", {"base": base_ref, "corpus": ref}, report.to_dict(), report.seconds
        )
        return cls(
            "asker",
            work / "model",
            source if block.gives_adapter else None,
            system=system,
            end_mark=block.end_mark,
            intent_column=block.intent_column,
            data=ref,
            history=history,
        )

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, system: str | None = None, base: str | None = None
    ) -> Asker:
        """Load an asker from a model repo (``me/my-asker``, ``me/my-asker@v2``) or a folder.

        Args:
            name: The repo, or the folder.
            system: Its system message; by default what its training recorded.
            base: What a folder's adapter was trained on; by default as the adapter says.

        Raises:
            RepoMissingError: There is no such repo.
            SourceError: An adapter does not name its base.
        """
        folder = Path(name).expanduser()
        if folder.is_dir():
            return cls._from_folder(folder, system, base)
        spec = askers.find(connect(), str(name))
        return cls(
            spec.name,
            spec.ref,
            spec.base,
            system=system or spec.system,
            end_mark=spec.end_mark,
            intent_column=spec.intent_column,
            data=spec.data,
        )

    @classmethod
    def _from_folder(cls, folder: Path, system: str | None, base: str | None) -> Asker:

        def read(name: str) -> JsonObject:
            try:
                value = parse_json((folder / name).read_text("utf-8"))
            except (OSError, ValueError):
                return {}
            return value if isinstance(value, dict) else {}

        adapter = read("adapter_config.json")
        if adapter and not base:
            try:
                base = repo_name(adapter.get("base_model_name_or_path"))
            except ValueError as error:
                raise SourceError(
                    f"adapter_config.json in {folder} names no repo as its base ({error}); give "
                    f"the base, which may be a folder of yours, with base="
                ) from None
        revision = str(adapter.get("revision") or "main")
        return cls(
            folder.name,
            folder.resolve(),
            _base(base, revision, silent)[0] if base else None,
            system=system or (text_in(read("training_report.json"), "system") or None),
        )

    def next_turn(
        self,
        messages: Sequence[Message],
        *,
        intent: str = "",
        temperature: float = 0.7,
        max_tokens: int = 256,
        seed: int = 0,
    ) -> str:
        """Write what the person says next.

        Args:
            messages: The conversation so far, roles as recorded: the person is ``user``. Empty: the
                person opens it.
            intent: What the person wants, for an asker that was trained with intents.
            temperature: 0 takes the most likely token.
            max_tokens: Longest turn.
            seed: Of the sampling.

        Returns:
            The turn, without the asker's end mark.

        Raises:
            EndpointError: The engine refuses the request.
        """
        view = seat_view(list(messages), "user", self.system, intent=intent)
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
        model = self.serve()

        async def ask() -> str:
            async with model.endpoint(sampling=sampling, name=self.name) as endpoint:
                return (await endpoint.chat(view, seed=seed)).content

        return split_end_mark(_wait(ask()), self.end_mark)[0]

    def serve(self) -> ServedModel:
        """Where it answers: its engine is started where none runs yet, and runs until `close`."""
        if self._served is None:
            stack = ExitStack()
            logs = library_folder("engine", str(self.source))
            models = stack.enter_context(
                serve(
                    connect(),
                    {"asker": self.spec},
                    log_dir=logs,
                    progress=silent,
                    slots=8,
                    tokens=4096,
                )
            )
            self._running, self._served = stack, models["asker"]
        return self._served

    @property
    def spec(self) -> ModelSpec:
        """What is served for it."""
        return ModelSpec(self.source, self.base)

    @property
    def ref(self) -> Ref:
        """Its commit, or what stands for its folder."""
        if isinstance(self.source, Ref):
            return self.source
        return file_ref(self.name, sorted(self.source.glob("*.safetensors")))

    def close(self) -> None:
        """Stop its engine, where one runs."""
        if self._running is not None:
            self._running.close()
        self._running = self._served = None

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def scorecard(
        self,
        test: Conversations,
        *,
        contexts: int = 100,
        openings: int = 20,
        also: tuple[Also, ...] = ("base",),
        embedder: str | None = None,
        max_tokens: int = 256,
        seed: int = 42,
        progress: Progress = silent,
    ) -> ScorecardResult:
        """Measure how like people it plays, at contexts from held-out conversations.

        Args:
            test: Conversations that it was not trained on.
            contexts: At most so many of them.
            openings: First turns to ask for.
            also: What else is measured: ``base``, its base, told to play the user; and
                ``perplexity``, of people's turns (loads the weights).
            embedder: Encoder for the measures in an embedding space; None: they are not taken.
            max_tokens: Longest turn.
            seed: Draws contexts and turns.
            progress: Told how far it is.

        Returns:
            The measures of people, of the asker and of its base, with their intervals.
        """
        block = Scorecard(
            contexts=max(2, min(contexts, len(test))),
            openings=openings,
            sampling=Sampling(max_tokens=max_tokens),
            embedder=embedder,
        )
        hub = connect()
        base = self.base if isinstance(self.base, Ref) else None
        spec = AskerSpec(
            self.name,
            self.ref,
            self.spec,
            base,
            self.system,
            self.end_mark,
            self.intent_column,
            self.data,
        )
        compared = askers.with_base([spec]) if "base" in also else [spec]
        losses = Evals(conversations=max(2, len(test))) if "perplexity" in also else None
        if losses is not None and not isinstance(self.source, Ref):
            raise SourceError("perplexity is measured of pushed askers: push it, then load it")
        return askers.compare(
            hub,
            block,
            compared,
            HeldOutFiles(test.parquet(), source=test.ref.to_dict() if test.ref else None),
            seed=seed,
            losses=losses,
            progress=progress,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str = "other",
        private: bool | None = None,
        allow: Iterable[str] = (),
    ) -> Ref:
        """Commit its weights and tokenizer as a model repo, with card, lineage and licence.

        Args:
            repo_id: ``name``, or ``namespace/name``.
            license: Its licence, as the Hub names it.
            private: By default private, except on the embedded Hub.
            allow: Kinds of personal data and secrets that may be in it.

        Raises:
            SourceError: It is a repo already.
            PublishError: A file holds a secret.
        """
        if isinstance(self.source, Ref):
            raise SourceError(f"{self.source} is on the Hub already; copy it with `hubkit push`")
        files = {
            path.relative_to(self.source).as_posix(): path
            for path in sorted(self.source.rglob("*"))
            if path.is_file() and path.name not in ("README.md", "training_report.json")
        }
        return push(
            files,
            repo_id,
            "asker",
            self.history,
            ("asker",),
            license=license,
            private=private,
            allow=allow,
        )


def _base(name: str, revision: str, progress: Progress) -> tuple[Ref | Path, Path]:
    """A base as it is named to the engine, and its folder."""
    if Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().resolve()
        return folder, folder
    hub: Hub = connect()
    ref = require(hub, name, revision=revision, progress=progress)
    return ref, hub.snapshot(ref, allow_patterns=WEIGHTS)


def _wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, also where a loop runs already (a notebook): in a thread of its own then."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
