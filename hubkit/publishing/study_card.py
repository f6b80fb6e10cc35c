"""The card of what a study commits: what it is, what it was made from, and its result where it
holds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData, ModelCardData
from markupsafe import Markup

from hubkit.hub import Ref
from hubkit.publishing import assets, markdown, metadata
from hubkit.recipe import Recipe


def study_card(
    stage: str,
    recipe: Recipe,
    inputs: Mapping[str, Ref],
    record: Mapping[str, Any],
    *,
    kind: str,
    files: Sequence[str],
) -> str:
    """Render the card of the commit of `stage`.

    Args:
        stage: One of `hubkit.recipe.study.STUDY_STAGES`.
        recipe: The recipe with its study.
        inputs: What the stage read, by role.
        record: Its provenance record, with its report.
        kind: ``model`` or ``dataset``.
        files: The paths that its repo holds."""
    assert recipe.study is not None
    tags = ["hubkit", "study", *recipe.tags]
    data: DatasetCardData | ModelCardData
    if kind == "model":
        adapter = metadata.is_adapter(recipe.study.student)
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
        inputs=inputs,
        result=record["report"] if "differences" in record["report"] else None,
    )
