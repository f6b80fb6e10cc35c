"""The dataset's metadata in the form that dataset searches read: Croissant 1.0 JSON-LD, as the Hub
derives it.

Takes a card's front matter and each config's arrow schema; gives the document. The Hub writes its
own from the same card; this one travels with the repo, for Hubs that write none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "croissant.json"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def columns(schema: pa.Schema) -> dict[str, str]:
    """The plain columns of an arrow schema and their types in Croissant; nested ones are left to
    the parquet files.
    """
    import pyarrow.types as types

    kinds = (
        (types.is_string, "sc:Text"),
        (types.is_boolean, "sc:Boolean"),
        (types.is_integer, "sc:Integer"),
        (types.is_floating, "sc:Float"),
        (types.is_timestamp, "sc:DateTime"),
    )
    return {
        name: kind
        for name, column in zip(schema.names, schema.types, strict=True)
        for is_one, kind in kinds
        if is_one(column)
    }


def describe(
    repo_id: str, url: str, card: Mapping[str, Any], schemas: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The Croissant document of dataset `repo_id` at `url`, from its card's front matter.

    `schemas` gives each config's plain columns: name → ``sc:Text``, ``sc:Integer`` and so on.
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": repo_id.rpartition("/")[2],
        "description": f"{card.get('pretty_name', repo_id)}: see the dataset card for how it was made and its limits.",
        "license": str(card.get("license_name") or card.get("license")),
        "url": url,
        "keywords": [str(tag) for tag in card.get("tags") or ()],
        "inLanguage": card.get("language"),
        "distribution": [_repo(url), *(files for config in card.get("configs") or () for files in _file_sets(config))],
        "recordSet": [
            records for config in card.get("configs") or () for records in _record_sets(config, schemas)
        ],
    }  # fmt: skip


def _repo(url: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": "repo",
        "name": "repo",
        "description": "The git repository on the Hub.",
        "contentUrl": url,
        "encodingFormat": "git+https",
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }


def _splits(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(id, path pattern) of every split of a config."""
    for entry in config.get("data_files") or ():
        yield f"{config['config_name']}-{entry['split']}", str(entry["path"])


def _file_sets(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, pattern in _splits(config):
        yield {
            "@type": "cr:FileSet",
            "@id": f"parquet-{name}",
            "name": f"parquet-{name}",
            "containedIn": {"@id": "repo"},
            "encodingFormat": "application/x-parquet",
            "includes": pattern,
        }


def _record_sets(
    config: Mapping[str, Any], schemas: Mapping[str, Mapping[str, str]]
) -> Iterator[dict[str, Any]]:
    for name, _ in _splits(config):
        fields = [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{column}",
                "name": column,
                "dataType": kind,
                "source": {"fileSet": {"@id": f"parquet-{name}"}, "extract": {"column": column}},
            }
            for column, kind in schemas.get(config["config_name"], {}).items()
        ]
        yield {"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields}
