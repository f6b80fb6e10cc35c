"""The card of what a study commits: what it is, what it was made from, and its result where it
holds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCardData, ModelCardData
from markupsafe import Markup

from hubkit.hub import Ref
from hubkit.publishing import assets, markdown, metadata
from hubkit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What a study found, as its card says it: a table with its title, a sentence on each
    difference, and the asker's learning curve (title, columns, rows) where it has one."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdicts: Sequence[str]
    curve: tuple[str, Sequence[str], Sequence[Sequence[str]]] | None = None


def study_card(
    stage: str,
    recipe: Recipe,
    inputs: Mapping[str, Ref],
    record: Mapping[str, Any],
    *,
    kind: str,
    files: Sequence[str],
    result: StudyResult | None = None,
) -> str:
    """Render the card of the commit of `stage`.

    Args:
        stage: One of `hubkit.recipe.study.STUDY_STAGES`.
        recipe: The recipe with its study.
        inputs: What the stage read, by role.
        record: Its provenance record, with its report.
        kind: ``model`` or ``dataset``.
        files: The paths that its repo holds.
        result: What the study found, where this commit holds it."""
    assert recipe.study is not None
    tags = ["hubkit", "study", *recipe.tags]
    data: DatasetCardData | ModelCardData
    if kind == "model":
        adapter = recipe.study.student.gives_adapter
        data = ModelCardData(
            license=recipe.publish.license_chat,
            base_model=recipe.study.student.base,
            base_model_relation="adapter" if adapter else "finetune",
            library_name="peft" if adapter else "transformers",
            pipeline_tag="text-generation",
            tags=tags,
        )
    else:
        data = DatasetCardData(
            license="other",
            license_name="see-the-licence-section",
            tags=tags,
            configs=metadata.configs_by_name(files) or None,
        )
    template = markdown.environment(assets.folder("cards")).get_template("study.md.jinja")
    return template.render(
        front_matter=Markup(data.to_yaml()),
        stage=stage,
        recipe=recipe,
        study=recipe.study,
        inputs={role: ref for role, ref in inputs.items() if not _is_of_a_student(role)},
        of_students=sum(map(_is_of_a_student, inputs)),
        result=result,
    )


def _is_of_a_student(role: str) -> bool:
    return role.startswith(("student ", "scores "))
