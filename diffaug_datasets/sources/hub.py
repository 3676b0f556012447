"""Real images of a Hub dataset: which config, which splits, which columns, and what its labels are called.

Nothing is chosen where there is a choice: what the builder's facts do not say, the recipe names (`source_config`,
`source_split`, `image_column`, `label_column`), and a sentence says which names there are. What follows from the data
alone (classes from a column of texts, a split without labels that is left out) is said in `notes`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaug_datasets.core.errors import SourceError
from diffaug_datasets.core.models import on_the_hub
from diffaug_datasets.core.recipe import HUB_KEYS, Recipe
from diffaug_datasets.core.sources import BuilderFacts, Facts, Listing, listed_rows
from diffaug_datasets.sources.folders import ColumnFetch, column_facts

if TYPE_CHECKING:
    import datasets

COMMIT = re.compile(r"[@/]([0-9a-f]{40})(?=/|$)")
SHOWN = 20
TEXTS, NUMBERS = ("string", "large_string"), ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class HubChoice:
    """What a recipe says about its Hub source; None where it leaves the choice to the builder's facts."""

    config: str | None = None
    split: str | None = None
    image: str | None = None
    label: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, source: str | None) -> "HubChoice":
        """The four keys of a recipe, if that source is its own; another copy of the images has other names."""
        return cls(*(getattr(recipe, key) for key in HUB_KEYS)) if source in (None, recipe.source) else cls()


ANY = HubChoice()


@dataclass(frozen=True)
class HubImages:
    """What was found; `notes`: what was decided on the way, in words."""

    listing: Listing
    fetch: ColumnFetch
    commit: str
    facts: Mapping[str, Facts]
    notes: tuple[str, ...]


def hub_images(facts: BuilderFacts, name: str, revision: str | None, choice: HubChoice, ways: str) -> HubImages:
    """The labelled images of `org/name`. `ways`: the other sources that the builder takes, for messages.

    Raises:
        SourceError: it cannot be loaded, or what is to be taken is not clear; names what there is and the key to set.
    """
    splits = _loaded(facts, name, revision, choice.config, ways)
    train = _training_splits(facts, name, list(splits), choice.split)
    first = splits[train[0]]
    image, label = (
        _image_column(facts, name, first.features, choice),
        _label_column(facts, name, first.features, choice),
    )
    kind = first.features[label]
    notes = list(_column_notes(label, kind))
    labels = {split: splits[split].with_format(None)[label][:] for split in train}
    test = None
    for split in (split for split in facts.hub_test if split in splits and split not in train):
        hidden = "has no such column" if label not in splits[split].features else ""
        values = [] if hidden else splits[split].with_format(None)[label][:]
        without = sum(map(_is_hidden, values))
        if hidden or without:
            told = hidden or f"{without:,} of {len(values):,} rows have none"
            notes.append(f"split {split} is left out: its labels are hidden ({label}: {told})")
            continue
        _check_same_names(name, kind, split, splits[split].features[label])
        test, labels[split] = split, values
        break
    if unused := [split for split in splits if split not in labels and not any(f"split {split} " in n for n in notes)]:
        notes.append(f"not used: the splits {', '.join(unused)} (source_split names the one to train from)")
    names, rows = _classes(name, label, kind, labels)
    listed = {split: listed_rows(split, values) for split, values in rows.items()}
    return HubImages(
        listing=Listing(
            names, tuple(item for split in train for item in listed[split]), listed[test] if test else None
        ),
        fetch=ColumnFetch({split: splits[split].data.column(image) for split in labels}, _caches()),
        commit=_commit(first) or revision or "",
        facts=column_facts({split: splits[split] for split in labels}),
        notes=tuple(notes),
    )


def _loaded(
    facts: BuilderFacts, name: str, revision: str | None, config: str | None, ways: str
) -> "datasets.DatasetDict":
    import datasets

    try:
        return datasets.load_dataset(on_the_hub(name), config, revision=revision, streaming=False)
    except Exception as error:  # what is raised over files of strangers has no class in common
        reason = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())[:300]
        raise SourceError(
            f"{facts.name}: {_wrong_config(name, revision, config, reason) or _unloaded(name, revision, reason, ways)}"
        ) from None


def _wrong_config(name: str, revision: str | None, config: str | None, reason: str) -> str:
    """What is wrong with the config, if that is what is wrong."""
    import datasets

    if not reason.startswith(("Config name is missing", "BuilderConfig ")):
        return ""
    known = _several(datasets.get_dataset_config_names(on_the_hub(name), revision=revision))
    if config is None:
        return f"{name} has the configs {known} and no default one; name it as source_config."
    return f"source_config: got {config!r}, expected one of {known} of {name}."


def _unloaded(name: str, revision: str | None, reason: str, ways: str) -> str:
    """Why `datasets` could not load it, as the Hub itself answers when asked for the card alone."""
    from huggingface_hub import constants, get_token, hf_hub_download
    from huggingface_hub import errors as hub

    if found := re.match(r"Dataset scripts are no longer supported, but found (\S+)", reason):
        copy = f"its Parquet copy ({name}@refs/convert/parquet), where the Hub has one"
        return f"{name} is made by a script ({found[1]}), which `datasets` no longer runs; give {copy}, or {ways}."
    broken: Any = hub.HfHubHTTPError.__mro__[1]  # whatever the HTTP library of this huggingface_hub raises
    other = f"or give {ways}; `fashion` needs no download."
    offline = "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set" if "OfflineModeIsEnabled" in reason else reason
    unreached = f"and {name} is not in the cache; check the network, {other}"
    if reason.startswith("Couldn't reach"):
        return f"the Hub cannot be reached ({offline}) {unreached}"
    try:
        hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
    except hub.GatedRepoError:
        page = f"{constants.ENDPOINT}/datasets/{name}"
        return f"{name} is gated and this login has no access; ask for it at {page}, run `hf auth login`, {other}"
    except hub.RepositoryNotFoundError:
        who = "this login" if get_token() else "visitors without a login"
        said = f"the Hub shows {who} no dataset {name!r}: it is private or not there"
        return f"{said}; check the id, run `hf auth login`, {other}"
    except hub.RevisionNotFoundError:
        return f"{name} has no revision {revision!r}; name one of its branches, tags or commits."
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        cause = error.__cause__ or error
        if isinstance(cause, hub.HfHubHTTPError):
            return f"the Hub answers {cause.response.status_code} {unreached}"
        return f"the Hub cannot be reached ({type(cause).__name__}) {unreached}"
    except hub.EntryNotFoundError:
        pass  # a dataset without a card is there all the same
    except (broken, OSError) as error:
        answer = " ".join(str(error).split())[:200]
        return f"the Hub does not give {name} away ({answer}); try again later, run `hf auth login`, {other}"
    return f"{name} is on the Hub, but `datasets` cannot read it ({reason}); give another revision, {other}"


def _training_splits(facts: BuilderFacts, name: str, found: Sequence[str], chosen: str | None) -> list[str]:
    if chosen is not None:
        if chosen not in found:
            raise SourceError(f"source_split: got {chosen!r}, expected one of {', '.join(found)} of {name}.")
        return [chosen]
    train = [split for split in facts.hub_train if split in found]
    if not train:
        raise SourceError(
            f"{name}: got the splits {', '.join(found)}, expected {' or '.join(facts.hub_train)}; name the one to "
            "train from as source_split."
        )
    return train


def _image_column(facts: BuilderFacts, name: str, features: Mapping[str, Any], choice: HubChoice) -> str:
    import datasets

    if (key := choice.image) is not None:
        _check_there("image_column", key, name, features)
        if not isinstance(features[key], datasets.Image) and not _holds_bytes(features[key]):
            raise SourceError(f"image_column: {key!r} of {name} is {_kind(features[key])}, expected encoded images.")
        return key
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    if facts.hub_id and "image" in images:
        return "image"
    if len(images) == 1:
        return images[0]
    if images:
        raise SourceError(f"{name}: has the image columns {_several(images)}; name one as image_column.")
    raise SourceError(
        f"{name}: has no Image column among {_told(features)}; name one of encoded images as image_column."
    )


def _label_column(facts: BuilderFacts, name: str, features: Mapping[str, Any], choice: HubChoice) -> str:
    import datasets

    if (key := choice.label) is not None:
        _check_there("label_column", key, name, features)
        if not (isinstance(features[key], datasets.ClassLabel) or _dtype(features[key]) in (*TEXTS, *NUMBERS)):
            many = _kind(features[key]).startswith("list")
            why = ": more than one label per image (multi-label) has no place in one class per image" if many else ""
            raise SourceError(
                f"label_column: {key!r} of {name} is {_kind(features[key])}, expected classes, texts or integers{why}."
            )
        return key
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if facts.hub_id and facts.hub_label in labels:
        return facts.hub_label
    if len(labels) == 1:
        return labels[0]
    if labels:
        raise SourceError(f"{name}: has the label columns {_several(labels)}; name one as label_column.")
    if _dtype(features.get(facts.hub_label)) in (*TEXTS, *NUMBERS):
        return facts.hub_label
    multi = [key for key, kind in features.items() if _kind(kind).startswith("list of ClassLabel")]
    why = f" ({multi[0]} is multi-label, which is not one class per image)" if multi else ""
    raise SourceError(f"{name}: has no ClassLabel column among {_told(features)}{why}; name one as label_column.")


def _check_there(key: str, column: str, name: str, features: Mapping[str, Any]) -> None:
    if column not in features:
        raise SourceError(f"{key}: got {column!r}, expected one of the columns {_told(features)} of {name}.")


def _column_notes(label: str, kind: Any) -> Iterable[str]:
    if _dtype(kind) in TEXTS:
        yield f"classes are the texts of column {label}, in sorted order"
    elif _dtype(kind) in NUMBERS:
        yield f"column {label} has numbers without names, so classes and prompts say the numbers (label_column)"


def _classes(
    name: str, label: str, kind: Any, labels: Mapping[str, list[Any]]
) -> tuple[tuple[str, ...], Mapping[str, list[int | None]]]:
    """Class names and each row's class id, None where it has no label."""
    if _dtype(kind) not in (*TEXTS, *NUMBERS):
        return tuple(kind.names), labels
    values = sorted({value for found in labels.values() for value in found if not _is_hidden(value)})
    rows = sum(map(len, labels.values()))
    if _dtype(kind) in TEXTS and len(values) > max(100, rows // 2):
        raise SourceError(
            f"label_column: {label!r} of {name} has {len(values):,} different texts in {rows:,} rows, expected class "
            "names; name another column."
        )
    place = {value: index for index, value in enumerate(values)}
    return tuple(map(str, values)), {split: [place.get(value) for value in found] for split, found in labels.items()}


def _is_hidden(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, int) and value < 0)


def _check_same_names(name: str, kind: Any, split: str, other: Any) -> None:
    if getattr(kind, "names", None) != getattr(other, "names", None) or _dtype(kind) != _dtype(other):
        raise SourceError(f"{name}: the classes of split {split} are not those of training; give another revision.")


def _dtype(kind: Any) -> str:
    """The dtype of a plain column; '' of any other, of ClassLabel too."""
    import datasets

    return str(kind.dtype) if isinstance(kind, datasets.Value) else ""


def _holds_bytes(kind: Any) -> bool:
    binary = ("binary", "large_binary")
    return _dtype(kind) in binary or (isinstance(kind, Mapping) and _dtype(kind.get("bytes")) in binary)


def _kind(kind: Any) -> str:
    """A column's type in a word or two."""
    inner = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
    if inner is not None:
        return f"list of {_kind(inner)}"
    return _dtype(kind) or ("struct" if isinstance(kind, Mapping) else type(kind).__name__)


def _told(features: Mapping[str, Any]) -> str:
    return _several([f"{key} ({_kind(kind)})" for key, kind in features.items()])


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _caches() -> tuple[Path, ...]:
    import datasets
    from huggingface_hub import constants

    return Path(datasets.config.HF_DATASETS_CACHE).resolve(), Path(constants.HF_HUB_CACHE).resolve()


def _commit(split: "datasets.Dataset") -> str:
    """The commit that a loaded split came from, as its downloads or its cache folder spell it, or ''."""
    texts = [*(split.info.download_checksums or {}), *(file["filename"] for file in split.cache_files)]
    found = (COMMIT.search(text) for text in texts)
    return next((match[1] for match in found if match), "")
