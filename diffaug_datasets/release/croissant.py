"""`croissant.json`: the repository as Croissant 1.1 metadata, with PROV and RAI fields.

Follows the Croissant format (docs.mlcommons.org/croissant) and its RAI vocabulary. Entries of ours are replaced by
`@id`; everything else that is there stays.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.rows import KINDS, column_meanings, published_columns
from diffaug_datasets.release.card_metadata import bibtex
from diffaug_datasets.release.contents import RUN_JSON, Contents
from diffaug_datasets.release.layout import Release
from diffaug_datasets.release.provenance import STATUS

CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
FORMATS = {"arrow": "application/vnd.apache.arrow.stream", "parquet": "application/x-parquet"}
PROVENANCE_FILE = "provenance.parquet"
DAY = re.compile(r"\d{4}\.\d{1,2}\.\d{1,2}", re.ASCII)
RAI = {
    "rai:hasSyntheticData": True,
    "rai:dataCollection": "Real images of a public dataset, and images made from them by a diffusion model.",
    "rai:dataLimitations": "A synthetic image may not show the class of its label; few real images stand behind many.",
    "rai:dataBiases": "Biases of the diffusion model and of the real images are repeated, not removed.",
    "rai:personalSensitiveInformation": "Whatever the real images hold; nothing is added.",
    "rai:dataUseCases": "Training image classifiers where real images are few. Not for evaluation.",
    "rai:dataSocialImpact": "Classifiers may take over what the diffusion model shows too often or too seldom.",
}


def croissant(old: str | None, contents: Contents, target: str) -> str:
    """The metadata with this release in it.

    Raises:
        PublishError: the old file is no JSON object.
    """
    found = _parsed(old)
    release, facts = contents.release, contents.facts
    url = target if "://" in target else f"https://huggingface.co/datasets/{target}"
    fixed = {"@context": dict(CONTEXT), "@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.1"}
    name = target.rstrip("/").split("/")[-1]
    stated = {
        "name": name,
        "description": _description(contents),
        "url": url,
        "license": facts.licence_url or facts.licence,
        "citeAs": citation(contents),
        "datePublished": release.finished,
    }
    latest = max(release.finished, str(found.get("dateModified") or ""))
    dated = {"dateModified": latest, "version": _version(found.get("version"), latest)}
    entries = {
        "distribution": [_repository(url), *_files(release, url)],
        "recordSet": [*_record_sets(release), *_provenance(release), _labels(release)],
        "prov:wasDerivedFrom": [_source(contents)],
        "prov:wasGeneratedBy": [_activity(contents)],
    }
    joined = {key: _by_id(found.get(key), new, release.name) for key, new in entries.items()}
    text = json.dumps({**fixed, **stated, **RAI, **found, **fixed, **dated, **joined}, indent=1, ensure_ascii=False)
    return text + "\n"


def _version(old: Any, finished: str) -> str:
    """The day of the newest run as a version, `2026.11.21`, unless a person chose another one."""
    if old is not None and not DAY.fullmatch(str(old)):
        return str(old)
    return ".".join(str(int(part)) for part in finished[:10].split("-"))


def citation(contents: Contents) -> str:
    """BibTeX of the method's paper and of the real dataset."""
    method = discover_methods().get(contents.release.method)
    papers = [bibtex(method.PAPER, method.TITLE)] if method and method.PAPER else []
    return "\n\n".join([*papers, *([contents.facts.citation] if contents.facts.citation else [])])


def _parsed(old: str | None) -> dict[str, Any]:
    try:
        found = json.loads(old) if old is not None else {}
    except (ValueError, RecursionError) as error:
        raise PublishError(f"croissant.json: cannot be read ({error}); put it right or remove it.") from None
    if not isinstance(found, dict):
        raise PublishError("croissant.json: holds no JSON object; put it right or remove it.")
    return found


def _by_id(old: Any, new: list[dict[str, Any]], name: str) -> list[Any]:
    """Old entries but those of this config (`<name>` or `<name>/...`), then the new ones."""
    ids = {entry["@id"] for entry in new}
    entries = old if isinstance(old, list) else [old] if old else []
    kept = [entry for entry in entries if not _is_ours(entry, name, ids)]
    return [*kept, *new]


def _is_ours(entry: Any, name: str, ids: set[str]) -> bool:
    found = str(entry.get("@id", "")) if isinstance(entry, dict) else ""
    return found in ids or found == name or found.startswith(f"{name}/")


def _description(contents: Contents) -> str:
    title = contents.facts.title
    return f"{title}, augmented with diffusion models: real images and reproducible synthetic ones for training."


def _repository(url: str) -> dict[str, Any]:
    """The place of all files; Croissant wants a digest, and a repository that moves has none."""
    return {
        "@type": "cr:FileObject",
        "@id": "repo",
        "name": "repo",
        "contentUrl": url,
        "encodingFormat": "git+https",
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }


def _files(release: Release, url: str) -> list[dict[str, Any]]:
    """The provenance, which any reader can fetch and check, and one file set of shards a split."""
    place = f"{url}/resolve/main" if url.startswith("https://") else url
    listed: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": f"{release.name}/{file.file}",
            "name": file.file,
            "contentUrl": f"{place}/{release.folder}/{file.file}",
            "contentSize": f"{file.size} B",
            "encodingFormat": FORMATS["parquet"],
            "sha256": file.sha256,
        }
        for file in release.beside
        if file.file == PROVENANCE_FILE
    ]
    for split in dict.fromkeys(file.split for file in release.files):
        listed.append(
            {
                "@type": "cr:FileSet",
                "@id": f"{release.name}/{split}-files",
                "name": f"{split} shards; {release.folder}/{RUN_JSON} has their digests",
                "containedIn": {"@id": "repo"},
                "encodingFormat": FORMATS[release.file_format],
                "includes": [f"{release.folder}/{file.path}" for file in release.split_files(split)],
            }
        )
    return listed


def _record_sets(release: Release) -> list[dict[str, Any]]:
    """One a split, over its shards."""
    found = []
    for split in dict.fromkeys(file.split for file in release.files):
        place = f"{release.name}/{split}"
        found.append(_records(place, {"fileSet": {"@id": f"{place}-files"}}, published_columns()))
    return found


def _provenance(release: Release) -> list[dict[str, Any]]:
    """Every planned row without pixels, over a Parquet file whatever the shards' format."""
    if not any(file.file == PROVENANCE_FILE for file in release.beside):
        return []
    columns = {name: kind for name, kind in published_columns().items() if kind != "image"}
    source = {"fileObject": {"@id": f"{release.name}/{PROVENANCE_FILE}"}}
    return [_records(f"{release.name}/provenance", source, {**columns, **STATUS})]


def _records(place: str, source: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    fields = [_field(place, source, name, kind) for name, kind in columns.items() if KINDS[kind].croissant]
    return {"@type": "cr:RecordSet", "@id": place, "name": place.replace("/", "_"), "field": fields}


def _field(place: str, source: Mapping[str, Any], name: str, kind: str) -> dict[str, Any]:
    pixels = {"transform": {"jsonPath": "bytes"}} if kind == "image" else {}
    many = {"repeated": True} if KINDS[kind].is_list else {}
    return {
        "@type": "cr:Field",
        "@id": f"{place}/{name}",
        "name": name,
        "description": column_meanings()[name],
        "dataType": KINDS[kind].croissant,
        "source": {**source, "extract": {"column": name}, **pixels},
        **many,
    }


def _labels(release: Release) -> dict[str, Any]:
    """What class each number of `label` is."""
    place = f"{release.name}/labels"
    kinds = {"id": "sc:Integer", "name": "sc:Text"}
    fields = [{"@type": "cr:Field", "@id": f"{place}/{n}", "name": n, "dataType": kind} for n, kind in kinds.items()]
    rows = [{f"{place}/id": i, f"{place}/name": name} for i, name in enumerate(release.class_names)]
    name, key = place.replace("/", "_"), {"@id": f"{place}/id"}
    return {
        "@type": "cr:RecordSet",
        "@id": place,
        "name": name,
        "dataType": "sc:Enumeration",
        "key": key,
        "field": fields,
        "data": rows,
    }


def _source(contents: Contents) -> dict[str, Any]:
    facts = contents.facts
    place = facts.homepage or (f"https://huggingface.co/datasets/{facts.hub_id}" if facts.hub_id else "")
    told = {"name": facts.title, "license": facts.licence, "citeAs": facts.citation}
    return {
        "@type": "prov:Entity",  # a second sc:Dataset in the file is taken for the first one
        "@id": f"{contents.release.name}/source",
        **told,
        **({"url": place} if place else {}),
    }


def _activity(contents: Contents) -> dict[str, Any]:
    release, method = contents.release, discover_methods().get(contents.release.method)
    title = method.TITLE if method else release.method
    used = f"{title} version {release.method_version} with {contents.run.plan.header.backbone}, plan {release.plan_id}"
    agent = {"@type": "prov:SoftwareAgent", "prov:label": f"diffaug-datasets {release.package}"}
    return {
        "@type": "prov:Activity",
        "@id": f"{release.name}/generation",
        "prov:label": used,
        "prov:endedAtTime": release.finished,
        "prov:wasAssociatedWith": agent,
    }
