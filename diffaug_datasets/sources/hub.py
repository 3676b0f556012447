"""Images of a Hub dataset: which config, which splits, which columns, what its labels are called, and the bytes.

Nothing is chosen where there is a choice: what the builder's facts do not say, the recipe names (`source_config`,
`source_split`, `image_column`, `label_column`), and a sentence says which names there are. What follows from the data
alone (classes from a column of texts, a split without labels that is left out) is said in `notes`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaug_datasets.core.errors import SourceError, few, one_line
from diffaug_datasets.core.models import on_the_hub
from diffaug_datasets.core.sources import (
    TEXT_DTYPES,
    Attribution,
    BuilderFacts,
    Listing,
    attribution_columns,
    listed_rows,
    stated_attribution,
)

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

DATASET_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
CACHED_COMMIT = re.compile(r"[@/]([0-9a-f]{40})(?=/|$)")
SHOWN = 20  # columns or configs in a sentence
NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
BINARY = ("binary", "large_binary")


@dataclass(frozen=True)
class HubChoice:
    """What a recipe says about its Hub source; None where it leaves the choice to the builder's facts."""

    config: str | None = None
    split: str | None = None
    image: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class HubImages:
    """The labelled images of a Hub dataset. `notes`: what was decided on the way, in words."""

    listing: Listing
    fetch: "ColumnFetch"
    commit: str
    attributions: Mapping[str, Attribution]
    notes: tuple[str, ...]


def hub_images(facts: BuilderFacts, name: str, revision: str | None, choice: HubChoice, ways: str) -> HubImages:
    """The labelled images of `org/name`. `ways`: the other sources that the builder takes, for messages.

    Raises:
        SourceError: it cannot be loaded, or what is to be taken is not clear; names what there is and the key to set.
    """
    splits = _loaded(facts, name, revision, choice.config, ways)
    train = _training_splits(facts, name, list(splits), choice.split)
    first = splits[train[0]]
    image = _image_column(facts, name, first.features, choice)
    label = _label_column(facts, name, first.features, choice)
    kind, notes = first.features[label], []
    if _dtype(kind) in TEXT_DTYPES:
        notes.append(f"classes are the texts of column {label}, in sorted order")
    elif _dtype(kind) in NUMBERS:
        notes.append(f"column {label} has numbers without names, so classes and prompts say the numbers (label_column)")
    labels = {split: splits[split].with_format(None)[label][:] for split in train}
    test, skipped = None, []
    for split in (split for split in facts.hub_test if split in splits and split not in train):
        other = splits[split].features.get(label)
        values = [] if other is None else splits[split].with_format(None)[label][:]
        without = sum(map(_is_hidden, values))
        if other is None or without:
            why = f"{without:,} of {len(values):,} rows have none" if without else "has no such column"
            notes.append(f"split {split} is left out: its labels are hidden ({label}: {why})")
            skipped.append(split)
            continue
        if getattr(kind, "names", None) != getattr(other, "names", None) or _dtype(kind) != _dtype(other):
            why = f"the classes of split {split} are not those of training"
            raise SourceError(f"{name}: {why}; give another revision.")
        test, labels[split] = split, values
        break
    if unused := [split for split in splits if split not in labels and split not in skipped]:
        notes.append(f"not used: the splits {', '.join(unused)} (source_split names the one to train from)")
    class_names, class_ids = _classes(name, label, kind, labels)
    listed = {split: listed_rows(split, values) for split, values in class_ids.items()}
    training = tuple(item for split in train for item in listed[split])
    return HubImages(
        listing=Listing(class_names, training, listed[test] if test else None),
        fetch=ColumnFetch({split: splits[split].data.column(image) for split in labels}, download_caches()),
        commit=commit_of(first) or revision or "",
        attributions=column_attributions({split: splits[split] for split in labels}),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class ColumnFetch:
    """The bytes at `<split>/<row>` of image columns; cells and `roots` are those of `cell_bytes`."""

    columns: Mapping[str, "pa.ChunkedArray[Any]"]
    roots: tuple[Path, ...] = ()

    def __call__(self, key: str) -> bytes:
        """The encoded image of a row.

        Raises:
            SourceError: the row holds none.
        """
        split, row = key.rsplit("/", 1)
        data = cell_bytes(self.columns[split][int(row)].as_py(), self.roots)
        if data is None:
            raise SourceError(f"{key}: the row holds no image bytes; expected images stored inside the dataset.")
        return data


def cell_bytes(cell: bytes | Mapping[str, object] | None, roots: Sequence[Path]) -> bytes | None:
    """The encoded image in a cell of an image column, or None.

    A path instead of bytes is followed only below `roots`, such as where `datasets` itself unpacked the files.
    """
    if isinstance(cell, bytes):
        return cell
    stored, named = (cell or {}).get("bytes"), (cell or {}).get("path")
    if isinstance(stored, bytes):
        return bytes(stored)
    path = Path(str(named or "")).resolve()
    return path.read_bytes() if any(path.is_relative_to(root) for root in roots) and path.is_file() else None


def column_attributions(splits: "Mapping[str, datasets.Dataset]") -> dict[str, Attribution]:
    """`<split>/<row>` -> attribution of every row that states one in a text column."""
    attributions: dict[str, Attribution] = {}
    for split, table in splits.items():
        texts = {name for name, kind in table.features.items() if getattr(kind, "dtype", "") in TEXT_DTYPES}
        if wanted := [name for name in attribution_columns(table.column_names) if name in texts]:
            columns = table.select_columns(wanted).with_format(None)
            for number, row in enumerate(columns):
                if stated := stated_attribution(row):
                    attributions[f"{split}/{number:07d}"] = stated
    return attributions


def download_caches() -> tuple[Path, ...]:
    """The folders where `datasets` and the Hub's client keep what they download and unpack."""
    import datasets
    from huggingface_hub import constants

    return Path(datasets.config.HF_DATASETS_CACHE).resolve(), Path(constants.HF_HUB_CACHE).resolve()


def commit_of(split: "datasets.Dataset") -> str:
    """The commit that a loaded split came from, as its downloads or its cache folder spell it, or ''."""
    texts = [*(split.info.download_checksums or {}), *(file["filename"] for file in split.cache_files)]
    matches = (CACHED_COMMIT.search(text) for text in texts)
    return next((match[1] for match in matches if match), "")


def _loaded(
    facts: BuilderFacts, name: str, revision: str | None, config: str | None, ways: str
) -> "datasets.DatasetDict":
    import datasets

    try:
        return datasets.load_dataset(on_the_hub(name), config, revision=revision, streaming=False)
    except Exception as error:  # what is raised over files of strangers has no class in common
        reason = one_line("".join(c if c.isprintable() else " " for c in str(error)), 300)
    if not reason.startswith(("Config name is missing", "BuilderConfig ")):
        raise SourceError(f"{facts.name}: {_load_failure(name, revision, reason, ways)}")
    known = few(datasets.get_dataset_config_names(on_the_hub(name), revision=revision), SHOWN)
    if config is None:
        why = f"{name} has the configs {known} and no default one; name it as source_config."
    else:
        why = f"source_config: got {config!r}, expected one of {known} of {name}."
    raise SourceError(f"{facts.name}: {why}")


def _load_failure(name: str, revision: str | None, reason: str, ways: str) -> str:
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
        shown = f"the Hub shows {who} no dataset {name!r}: it is private or not there"
        return f"{shown}; check the id, run `hf auth login`, {other}"
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
        answer = one_line(error)
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


def _image_column(facts: BuilderFacts, name: str, features: Mapping[str, object], choice: HubChoice) -> str:
    import datasets

    if (key := choice.image) is not None:
        _check_there("image_column", key, name, features)
        kind = features[key]
        stored = kind.get("bytes") if isinstance(kind, Mapping) else kind
        if not isinstance(kind, datasets.Image) and _dtype(stored) not in BINARY:
            raise SourceError(f"image_column: {key!r} of {name} is {_kind(kind)}, expected encoded images.")
        return key
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    if facts.hub_id and "image" in images:
        return "image"
    if len(images) == 1:
        return images[0]
    if images:
        raise SourceError(f"{name}: has the image columns {few(images, SHOWN)}; name one as image_column.")
    raise SourceError(
        f"{name}: has no Image column among {_in_words(features)}; name one of encoded images as image_column."
    )


def _label_column(facts: BuilderFacts, name: str, features: Mapping[str, object], choice: HubChoice) -> str:
    import datasets

    if (key := choice.label) is not None:
        _check_there("label_column", key, name, features)
        if not (isinstance(features[key], datasets.ClassLabel) or _dtype(features[key]) in (*TEXT_DTYPES, *NUMBERS)):
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
        raise SourceError(f"{name}: has the label columns {few(labels, SHOWN)}; name one as label_column.")
    if _dtype(features.get(facts.hub_label)) in (*TEXT_DTYPES, *NUMBERS):
        return facts.hub_label
    multi = [key for key, kind in features.items() if _kind(kind).startswith("list of ClassLabel")]
    why = f" ({multi[0]} is multi-label, which is not one class per image)" if multi else ""
    raise SourceError(f"{name}: has no ClassLabel column among {_in_words(features)}{why}; name one as label_column.")


def _check_there(key: str, column: str, name: str, features: Mapping[str, object]) -> None:
    if column not in features:
        raise SourceError(f"{key}: got {column!r}, expected one of the columns {_in_words(features)} of {name}.")


def _classes(
    name: str, label: str, kind: Any, labels: Mapping[str, list[Any]]
) -> tuple[tuple[str, ...], Mapping[str, list[int | None]]]:
    """Class names and each row's class id, None where it has no label."""
    if _dtype(kind) not in (*TEXT_DTYPES, *NUMBERS):
        return tuple(kind.names), labels
    values = sorted({value for found in labels.values() for value in found if not _is_hidden(value)})
    rows = sum(map(len, labels.values()))
    if _dtype(kind) in TEXT_DTYPES and len(values) > max(100, rows // 2):
        raise SourceError(
            f"label_column: {label!r} of {name} has {len(values):,} different texts in {rows:,} rows, expected class "
            "names; name another column."
        )
    class_id = {value: index for index, value in enumerate(values)}
    return tuple(map(str, values)), {split: [class_id.get(value) for value in found] for split, found in labels.items()}


def _is_hidden(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, int) and value < 0)


def _dtype(kind: object) -> str:
    """The dtype of a plain column; '' of any other, of ClassLabel too."""
    import datasets

    return str(kind.dtype) if isinstance(kind, datasets.Value) else ""


def _kind(kind: object) -> str:
    """A column's type in a word or two."""
    inner = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
    if inner is not None:
        return f"list of {_kind(inner)}"
    return _dtype(kind) or ("struct" if isinstance(kind, Mapping) else type(kind).__name__)


def _in_words(features: Mapping[str, object]) -> str:
    return few([f"{key} ({_kind(kind)})" for key, kind in features.items()], SHOWN)
