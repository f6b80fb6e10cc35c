"""Models by name → who answers or judges: a served address, a file of answers, or a repo that is
served here or by an endpoint made for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hubkit.errors import RecipeError, RepoMissingError, SourceError
from hubkit.untrusted import JsonObject

if TYPE_CHECKING:
    from hubkit.evaluation import Player
    from hubkit.evaluation.items import Question
    from hubkit.hub import Hub, Ref
    from hubkit.progress import Progress
    from hubkit.recipe import Deploy, SeatConfig
    from hubkit.serving import ModelSpec, ServedModel

DEPLOYED = "deploy:"
"""Before a repo's name: an endpoint is made for it."""

_FILE = re.compile(
    r"(?:(?P<type>datasets|models|spaces)/)?(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>[^:\s]+))?(?::(?P<file>[^:]+))?\Z"
)
_REPO = re.compile(r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:\s]+))?\Z")


@dataclass(frozen=True, slots=True)
class AddressOptions:
    """How to speak to an address: the dialect of its server, and the environment variable that
    holds its key, named by the option `named_by`."""

    dialect: str = "tgi"
    token_env: str | None = None
    named_by: str = "--token-env"

    @classmethod
    def of(cls, judge: SeatConfig) -> Self:
        """As the seat of a judging block says."""
        return cls(judge.profile, judge.token_env, "judge.token_env")

    def served(self, url: str, name: str) -> ServedModel:
        """The model `name` at `url`. Raises `RecipeError` when the variable is not set."""
        from hubkit.serving import ServedModel
        from hubkit.serving.client import key_in

        token = key_in(self.token_env, said_by=self.named_by)
        return ServedModel((url,), self.dialect, name, token)


def terms(engine: str, hardware: str) -> Deploy:
    """On what terms endpoints are made. Raises `RecipeError` for an engine or hardware that is not
    known.
    """
    from hubkit import cloud
    from hubkit.cloud import prices
    from hubkit.recipe import Deploy

    if engine not in cloud.ENGINES:
        raise RecipeError(f"no engine {engine!r}; take one of {', '.join(cloud.ENGINES)}")
    prices.hardware(hardware)
    return Deploy.model_validate({"engine": engine, "hardware": hardware})


class Names:
    """Looks names up, connecting to the Hub only when one of them is on it. `models` are those that
    have to be served, by the identity of who they are."""

    def __init__(self, progress: Progress) -> None:
        self._hub: Hub | None = None
        self._progress = progress
        self.models: dict[str, ModelSpec] = {}

    @property
    def hub(self) -> Hub:
        """The configured Hub."""
        from hubkit.hub import connect

        self._hub = self._hub or connect()
        return self._hub

    def file(self, name: str) -> tuple[Path, str]:
        """Where ``FILE`` or ``[datasets/|spaces/|models/]REPO_ID[@REV][:FILE]`` lies here, and what
        to call it.

        Without a file, a repo's only JSON or parquet file is meant.
        """
        if Path(name).is_file():
            return Path(name), Path(name).name
        match = _FILE.match(name)
        if match is None or (not match["file"] and name.endswith((".json", ".jsonl", ".parquet"))):
            raise SourceError(
                f"there is no file {name!r}; give a path, or REPO_ID[@REVISION]:FILE on the Hub"
            )
        if match["file"] and (".." in Path(match["file"]).parts or match["file"].startswith("/")):
            raise SourceError(f"{match['file']!r} points out of its repo")
        repo_type = (match["type"] or "datasets").removesuffix("s")
        try:
            ref = self.hub.resolve(
                match["repo"], repo_type=repo_type, revision=match["revision"] or "main"
            )
        except RepoMissingError as error:
            where = (
                "push it there, set HUBKIT_HUB=https://huggingface.co, "
                "or name a file on this machine"
            )
            raise RepoMissingError(
                f"{error}; {where} (--questions FILE for a benchmark)", status=404
            ) from None
        file = match["file"] or self._only(ref)
        path = self.hub.snapshot(ref, allow_patterns=[file]) / file
        if not path.is_file():
            raise SourceError(
                f"{ref} has no file {file!r}, "
                f"only {', '.join(self._tables(ref)) or 'none of its kind'}"
            )
        return path, f"{ref.repo_id}@{ref.revision[:12]}:{file}"

    def _tables(self, ref: Ref) -> list[str]:
        with self.hub.translated(f"listing {ref}"):
            files = self.hub.api.list_repo_files(
                ref.repo_id, repo_type=ref.repo_type, revision=ref.revision
            )
        return [file for file in files if file.endswith((".json", ".jsonl", ".parquet"))]

    def _only(self, ref: Ref) -> str:
        tables = self._tables(ref)
        if len(tables) != 1:
            advice = (
                f"holds {', '.join(tables)}; name one"
                if tables
                else "holds no JSON and no parquet; name a file"
            )
            raise SourceError(f"{ref} {advice}, as {ref.repo_id}:FILE")
        return tables[0]

    def player(
        self,
        name: str,
        address: AddressOptions,
        terms: Deploy | None = None,
        questions: Sequence[Question] | None = None,
    ) -> Player:
        """Who `name` is: ``URL[#MODEL]``, a file of recorded answers, a model folder,
        ``REPO_ID[@REV]``, or ``deploy:REPO_ID[@REV]``, for which an endpoint is made on `terms`.

        Repos and folders get their addresses from `serving`. Recorded answers are matched to
        `questions` by id or instruction; without questions (of a judge) a file is refused.
        """
        from hubkit.evaluation import Player
        from hubkit.evaluation.benchmarks import recorded_answers

        if name.startswith(("http://", "https://")):
            url, _, model = name.partition("#")
            label = model or url
            return Player(label, f"{url} {model}".strip(), address.served(url, model or "tgi"))
        if name.startswith(DEPLOYED):
            return self._repo(name.removeprefix(DEPLOYED), terms or _default_terms())
        if Path(name).is_file():
            if questions is None:
                raise SourceError(
                    f"{name} is a file, and a judge must be asked; for verdicts that were given "
                    f"before: hubkit eval report {name}"
                )
            answers, file = recorded_answers(name, self.file, questions)
            return Player(
                Path(name).stem,
                f"answers in {file['name']}, sha256 {file['sha256']}",
                recorded=answers,
            )
        if Path(name).is_dir():
            return self._folder(Path(name).resolve())
        if name.endswith((".json", ".jsonl")):
            raise SourceError(f"there is no file {name!r} with a model's answers; check the path")
        return self._repo(name, None)

    def _repo(self, name: str, terms: Deploy | None) -> Player:
        from hubkit.evaluation import Player
        from hubkit.pipeline import require
        from hubkit.pipeline.inputs import adapter_base
        from hubkit.serving import ModelSpec

        match = _REPO.match(name)
        if match is None:
            raise SourceError(
                f"{name!r} is no model: give REPO_ID[@REVISION], URL[#MODEL], or a file of answers"
            )
        repo_id = self.hub.qualify(match["repo"])
        ref = require(
            self.hub, repo_id, revision=match["revision"] or "main", progress=self._progress
        )
        identity = f"{ref.repo_id}@{ref.revision}" + (
            f" on {terms.engine}, {terms.hardware}" if terms else ""
        )
        base = adapter_base(self.hub, ref, progress=self._progress)
        self.models[identity] = ModelSpec(ref, base, terms)
        return Player(repo_id, identity, embedded=terms is None)

    def _folder(self, folder: Path) -> Player:
        from hubkit.evaluation import Player
        from hubkit.pipeline.inputs import locate
        from hubkit.recipe import Source
        from hubkit.serving import ModelSpec

        identity = f"{folder} sha256 {locate(self.hub, Source(path=str(folder))).revision}"
        self.models[identity] = ModelSpec(folder)
        return Player(folder.name, identity, embedded=True)

    def endpoints(self, tokens: int) -> list[JsonObject]:
        """The endpoints that `serving` would make, and what each costs an hour."""
        from hubkit.serving import inference_endpoints

        hosted = inference_endpoints.hosted(self.models, tokens)
        return inference_endpoints.prices(self.hub, hosted) if hosted else []


def _default_terms() -> Deploy:
    from hubkit.recipe import Deploy

    return Deploy()


@contextmanager
def serving(
    names: Names,
    players: Sequence[Player],
    *,
    context: int,
    slots: int,
    log_dir: Path,
    progress: Progress,
) -> Iterator[list[Player]]:
    """`players` with addresses: for the length of the block, those that `names` found as repos or
    folders are served, each once."""
    if not names.models:
        yield list(players)
        return
    from hubkit.serving import serve

    with serve(
        names.hub,
        names.models,
        log_dir=log_dir,
        progress=progress,
        slots=slots,
        tokens=context,
    ) as models:
        yield [replace(p, served=models.get(p.identity, p.served)) for p in players]
