"""Cards that huggingface_hub's tests read from files."""

SIMPLE = """---
language:
- en
license: mit
library_name: pytorch-lightning
tags:
- pytorch
- image-classification
datasets:
- beans
metrics:
- acc
---

# my-cool-model

A card.
"""

INDEX = """---
model-index:
- name: my-model
  results:
  - task:
      type: image-classification
    dataset:
      type: beans
      name: Beans
    metrics:
    - type: acc
      value: 0.9
---

Evaluated.
"""

DATASET = """---
annotations_creators:
- crowdsourced
- expert-generated
language_creators:
- found
language:
- en
license:
- bsd-3-clause
multilinguality:
- monolingual
size_categories:
- n<1K
task_categories:
- image-segmentation
task_ids:
- semantic-segmentation
pretty_name: Sample Segmentation
---

# Dataset Card for Sample Segmentation
"""

SAMPLES = {
    "sample_simple.md": SIMPLE,
    "sample_windows_line_breaks.md": SIMPLE.replace("\n", "\r\n"),
    "sample_template.md": (
        "---\n{{ card_data }}\n---\n\n# {{ model_name | default('a model') }}\n\n{{ some_data }}"
    ),
    "sample_datasetcard_template.md": (
        "---\n{{ card_data }}\n---\n\n# {{ pretty_name }}\n\n{{ some_data }}"
    ),
    "sample_invalid_card_data.md": "---\n- a\n- list\n---\n\n# Not a mapping\n",
    "sample_no_metadata.md": "# No metadata\n",
    "sample_invalid_model_index.md": (
        "---\nmodel-index:\n- name: my-model\n  results:\n  - dataset: 3\n---\n"
    ),
    "sample_simple_model_index.md": INDEX,
    "sample_datasetcard_simple.md": DATASET,
}
