"""`croissant.json`: the repository as Croissant 1.1 metadata, with PROV and RAI fields.

Follows the Croissant format (docs.mlcommons.org/croissant) and its RAI vocabulary. Entries of ours are replaced by
`@id`; everything else that is there stays.
"""

import json
import re
from collections.abc import Mapping, Sequence

from diffaug_datasets.core.errors import PublishError
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.rows import KINDS, column_meanings, published_columns
from diffaug_datasets.release.card_metadata import bibtex
from diffaug_datasets.release.contents import Contents
from diffaug_datasets.release.layout import PROVENANCE_FILE, RUN_JSON, Release
from diffaug_datasets.release.provenance import STATUS
from diffaug_datasets.sources.real import OWN_IMAGES

Node = Mapping[str, object]
"""A node of JSON-LD, as it is written."""

CONTEXT: Mapping[str, object] = {
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
DAY = re.compile(r"\d{4}\.\d{1,2}\.\d{1,2}", re.ASCII)  # the day of the newest run, as a version: 2026.11.21
RAI = {
    "rai:hasSyntheticData": True,
    "rai:dataLimitations": "A synthetic image may not show the class of its label; few real images stand behind many.",
    "rai:dataBiases": "Biases of the diffusion model and of the real images are repeated, not removed.",
    "rai:personalSensitiveInformation": "Whatever the real images hold; nothing is added.",
    "rai:dataUseCases": "Training image classifiers where real images are few. Not for evaluation.",
    "rai:dataSocialImpact": "Classifiers may take over what the diffusion model shows too often or too seldom.",
}


def croissant(old: str | None, contents: Contents, target: str) -> str:
    """The metadata with this release in it. `old`: the file that is there; `target`: where the repository is.

    Raises:
        PublishError: the old file is no JSON object.
    """
    known = _parsed(old)
    release, facts = contents.release, contents.facts
    method = discover_methods().get(release.method)
    url = target if "://" in target else f"https://huggingface.co/datasets/{target}"
    fixed = {"@context": dict(CONTEXT), "@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.1"}
    paper = bibtex(method.PAPER, method.TITLE) if method and method.PAPER else ""
    stated = {
        "name": target.rstrip("/").split("/")[-1],
        "description": f"{facts.title}, augmented with diffusion models: real images and reproducible synthetic ones "
        "for training.",
        "url": url,
        "license": facts.licence_url or facts.licence,
        "rai:dataCollection": _collection(contents),
        "citeAs": "\n\n".join(filter(None, (paper, facts.citation))),
        "datePublished": release.finished,
    }
    latest = max(release.finished, str(known.get("dateModified") or ""))
    version = known.get("version")
    if version is None or DAY.fullmatch(str(version)):  # unless a person chose another one
        version = ".".join(str(int(part)) for part in latest[:10].split("-"))
    dated = {"dateModified": latest, "version": str(version)}
    repository = {
        "@type": "cr:FileObject",
        "@id": "repo",
        "name": "repo",
        "contentUrl": url,
        "encodingFormat": "git+https",
        "sha256": "https://github.com/mlcommons/croissant/issues/80",  # a digest is wanted, and what moves has none
    }
    entries: Mapping[str, Sequence[Node]] = {
        "distribution": [repository, *_files(release, url)],
        "recordSet": [*_record_sets(contents), _labels(release)],
        "prov:wasDerivedFrom": [_source(contents)],
        "prov:wasGeneratedBy": [_activity(contents)],
    }
    joined = {key: _joined_by_id(known.get(key), new, release.name) for key, new in entries.items()}
    content = {**fixed, **RAI, **stated, **known, **fixed, **dated, **joined}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _collection(contents: Contents) -> str:
    """Where the images are from, as far as it is known."""
    is_own = contents.run.recipe.builder == OWN_IMAGES and not contents.facts.hub_id
    whose = "of the publisher" if is_own else "of a public dataset"
    return f"Real images {whose}, and images made from them by a diffusion model."


def _parsed(old: str | None) -> Node:
    try:
        known = json.loads(old) if old is not None else {}
    except (ValueError, RecursionError) as error:
        raise PublishError(f"croissant.json: cannot be read ({error}); put it right or remove it.") from None
    if not isinstance(known, dict):
        raise PublishError("croissant.json: holds no JSON object; put it right or remove it.")
    return known


def _joined_by_id(old: object, new: Sequence[Node], name: str) -> list[object]:
    """Old entries but those of this config (`<name>` or `<name>/...`), then the new ones."""
    ids = {entry["@id"] for entry in new}

    def is_ours(entry: object) -> bool:
        place = str(entry.get("@id", "")) if isinstance(entry, dict) else ""
        return place in ids or place == name or place.startswith(f"{name}/")

    entries = old if isinstance(old, list) else [old] if old else []
    return [*(entry for entry in entries if not is_ours(entry)), *new]


def _files(release: Release, url: str) -> list[Node]:
    """The provenance, which any reader can fetch and check, and one file set of shards per split."""
    root = f"{url}/resolve/main" if url.startswith("https://") else url
    nodes: list[Node] = [
        {
            "@type": "cr:FileObject",
            "@id": f"{release.name}/{file.file}",
            "name": file.file,
            "contentUrl": f"{root}/{release.folder}/{file.file}",
            "contentSize": f"{file.size} B",
            "encodingFormat": FORMATS["parquet"],
            "sha256": file.sha256,
        }
        for file in release.beside
        if file.file == PROVENANCE_FILE
    ]
    for split in dict.fromkeys(file.split for file in release.files):
        nodes.append(
            {
                "@type": "cr:FileSet",
                "@id": f"{release.name}/{split}-files",
                "name": f"{split} shards; {release.folder}/{RUN_JSON} has their digests",
                "containedIn": {"@id": "repo"},
                "encodingFormat": FORMATS[release.file_format],
                "includes": [f"{release.folder}/{file.path}" for file in release.split_files(split)],
            }
        )
    return nodes


def _record_sets(contents: Contents) -> list[Node]:
    """One per split, over its shards; and every planned row without pixels, over a Parquet file whatever the shards."""
    sets, release = [], contents.release
    meanings, kinds = {**column_meanings(), **contents.facts.columns}, published_columns(release.columns)
    for split in dict.fromkeys(file.split for file in release.files):
        place = f"{release.name}/{split}"
        sets.append(_record_set(place, {"fileSet": {"@id": f"{place}-files"}}, kinds, meanings))
    if any(file.file == PROVENANCE_FILE for file in release.beside):
        columns = {name: kind for name, kind in kinds.items() if kind != "image"}
        source = {"fileObject": {"@id": f"{release.name}/{PROVENANCE_FILE}"}}
        sets.append(_record_set(f"{release.name}/provenance", source, {**columns, **STATUS}, meanings))
    return sets


def _record_set(place: str, source: Node, columns: Mapping[str, str], meanings: Mapping[str, str]) -> Node:
    """`columns`: type name by column, as `published_columns` gives them; soft labels have no type in Croissant."""
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{place}/{name}",
            "name": name,
            "description": meanings[name],
            "dataType": KINDS[kind].croissant,
            "source": {
                **source,
                "extract": {"column": name},
                **({"transform": {"jsonPath": "bytes"}} if kind == "image" else {}),
            },
            **({"repeated": True} if KINDS[kind].is_list else {}),
        }
        for name, kind in columns.items()
        if KINDS[kind].croissant
    ]
    return {"@type": "cr:RecordSet", "@id": place, "name": place.replace("/", "_"), "field": fields}


def _labels(release: Release) -> Node:
    """What class each number of `label` is."""
    place = f"{release.name}/labels"
    kinds = {"id": "sc:Integer", "name": "sc:Text"}
    fields = [{"@type": "cr:Field", "@id": f"{place}/{n}", "name": n, "dataType": kind} for n, kind in kinds.items()]
    return {
        "@type": "cr:RecordSet",
        "@id": place,
        "name": place.replace("/", "_"),
        "dataType": "sc:Enumeration",
        "key": {"@id": f"{place}/id"},
        "field": fields,
        "data": [{f"{place}/id": i, f"{place}/name": name} for i, name in enumerate(release.class_names)],
    }


def _source(contents: Contents) -> Node:
    """The real dataset."""
    facts = contents.facts
    url = facts.homepage or (f"https://huggingface.co/datasets/{facts.hub_id}" if facts.hub_id else "")
    return {
        "@type": "prov:Entity",  # a second sc:Dataset in the file is taken for the first one
        "@id": f"{contents.release.name}/source",
        "name": facts.title,
        "license": facts.licence_url or facts.licence,
        "citeAs": facts.citation,
        **({"url": url} if url else {}),
    }


def _activity(contents: Contents) -> Node:
    """The generation: method, model and plan, and the version of this package."""
    release, method = contents.release, discover_methods().get(contents.release.method)
    title = method.TITLE if method else release.method
    used = f"{title} version {release.method_version} with {contents.run.plan.header.backbone}, plan {release.plan_id}"
    return {
        "@type": "prov:Activity",
        "@id": f"{release.name}/generation",
        "prov:label": used,
        "prov:endedAtTime": release.finished,
        "prov:wasAssociatedWith": {
            "@type": "prov:SoftwareAgent",
            "prov:label": f"diffaug-datasets {release.package}",
        },
    }
