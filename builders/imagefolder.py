"""Any folder of images: one folder per class, with train/ and test/ (or val/) above them where there is a split.

Labels are the folder names (Unicode NFC) in sorted order; prompts read them with spaces for underscores. Folders named
like splits in any usual wording (Training/, train_set/, validation/, dev/) are splits. System folders and files count
for nothing; whatever else is not used is said in the listing's survey, and what could be read in two ways is refused.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from diffaug_datasets.core.errors import SourceError, few, shown_name
from diffaug_datasets.core.images import formats
from diffaug_datasets.core.sources import Listed, Listing, Survey, check_folder_names
from diffaug_datasets.sources.folders import METADATA_FILES
from diffaug_datasets.sources.names import TEST, TRAIN, VAL, split_word

NAME = "imagefolder"
TITLE = "images"

INNER = ("images", "image", "imgs", "img", "jpg", "jpeg", "png", "photos", "pictures")
SYSTEM_FOLDERS = (
    *("__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "lost+found"),
    *("system volume information", "network trash folder", "temporary items", "__pycache__"),
)
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r")
DEEPEST = 100

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".pbm"),
    *(".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".apng"),
)
OPTIONAL = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"}
ADDED_BY = {"AVIF": "`pip install -U pillow` reads them", "HEIF": "`pip install pillow-heif` reads them"}
UNREAD = (
    *(".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".psd", ".xcf", ".exr", ".hdr", ".pfm", ".tga", ".ico", ".dib", ".dcm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".eps", ".pcx", ".fits"),
)


def prompt_name(label: str) -> str:
    """ "golden_retriever" -> "golden retriever"."""
    return label.replace("_", " ")


@dataclass
class _Folder:
    """A folder as it lies there: `place` below the root, keys of the images right inside, real folders below."""

    place: str
    images: list[str] = field(default_factory=list)
    folders: "list[_Folder]" = field(default_factory=list)

    @property
    def name(self) -> str:
        return _nfc(PurePosixPath(self.place).name)

    @property
    def keys(self) -> Iterator[str]:
        """Of all images in it and below."""
        yield from self.images
        for folder in self.folders:
            yield from folder.keys

    @cached_property
    def count(self) -> int:
        """Images in it and below."""
        return len(self.images) + sum(folder.count for folder in self.folders)

    @property
    def is_hollow(self) -> bool:
        """All its images lie in folders of its own."""
        return not self.images and any(folder.count for folder in self.folders)


@dataclass
class _Passed:
    """What was passed over: image files that are not read by suffix, and the rest by kind."""

    is_partial: bool = False
    unread: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    other: Counter[str] = field(default_factory=Counter)
    special: list[str] = field(default_factory=list)
    hidden: int = 0
    linked: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    system: set[str] = field(default_factory=set)

    def texts(self) -> Iterator[str]:
        """What was left out and why, kind by kind."""
        for suffix, keys in sorted(self.unread.items()):
            added = ADDED_BY.get(OPTIONAL.get(suffix, ""), "convert them to .png or .jpg")
            yield f"{len(keys):,} {suffix} ({few(sorted(keys))}; {added})"
        if self.special:
            yield f"{_counted(len(self.special), 'pipe or device', 'pipes or devices')} ({few(sorted(self.special))})"
        if self.other:
            kinds = few([kind for kind, _ in self.other.most_common()])
            yield f"{_counted(self.other.total(), 'file that is no image', 'files that are no images')} ({kinds})"
        for names, why in (
            (self.linked, "a link, which is not followed"),
            (self.empty, "no image in it"),
            (self.unknown, "no such class in training"),
        ):
            if names:
                yield f"{'folder' if len(names) == 1 else f'{len(names):,} folders'} {few(sorted(names))} ({why})"
        if self.hidden:
            yield _counted(self.hidden, "hidden image", "hidden images")
        if self.system:
            yield f"{'folder' if len(self.system) == 1 else 'folders'} {few(sorted(self.system))}"


def read(folder: Path, partial: bool = False) -> Listing:
    """Classes and images of a folder, in an order that does not depend on the machine.

    `partial`: class folders without an image, linked folders, and test classes that training lacks are left out.

    Raises:
        SourceError: no class folder, one without images, a layout that can be read in two ways, names that other
            machines would merge or cannot spell, linked folders, or a test class that has no training folder.
    """
    passed = _Passed(is_partial=partial)
    root = _tree(folder, passed)
    words = {below.place: split_word(below.name) for below in root.folders}
    training = [below for below in root.folders if words[below.place] == TRAIN and below.folders]
    if len(training) > 1:
        raise SourceError(f"{_at(folder)}: found {_listed(training)}, expected one training folder; merge them.")
    held = [below for below in root.folders if words[below.place] in (VAL, TEST)]
    if not training:
        return _without_split(folder, root, held, passed)
    [train] = training
    classes = _checked_classes(folder, train, train.folders, passed)
    names = tuple(item.name for item in classes)
    warnings = [*_deeper(classes)]
    left_out = [*_beside(train)]
    labelled: dict[str, list[_Folder]] = {TEST: [], VAL: []}
    for below in held:
        if below.count and _is_unlabelled(below, names):
            left_out.append(f"{below.place}/ ({_images(below)} without class folders, so no test split)")
        elif below.count:
            labelled[words[below.place] or ""].append(below)
    tested, validated = labelled[TEST], labelled[VAL]
    chosen = tested or validated
    if len(chosen) > 1:
        raise SourceError(f"{_at(folder)}: found {_listed(chosen)}, expected one such folder; merge or remove them.")
    layout = f"{train.place}/ with class folders"
    if chosen:
        role = "" if tested else " (serving as the test split)"
        layout = f"{train.place}/ and {chosen[0].place}/{role} with class folders"
        left_out += [f"{text} of {chosen[0].place}/" for text in _beside(chosen[0])]
    if tested:
        left_out += [f"{item.place}/ ({_images(item)}; {tested[0].place}/ is the test split)" for item in validated]
    others = [below for below in root.folders if words[below.place] is None and below.count]
    flat = [below for below in root.folders if words[below.place] == TRAIN and below is not train and below.count]
    if beside := [*others, *flat]:
        left_out += [f"{item.place}/ ({_images(item)} beside {train.place}/)" for item in beside]
        warnings.append(f"not used, for they lie beside {train.place}/: {few([f'{b.place}/' for b in beside])}")
    test = _items(chosen[0].folders, names, chosen[0], train, passed) if chosen else None
    survey = Survey(layout, (*left_out, *_beside(root), *passed.texts()), tuple(warnings))
    return Listing(names, _items(classes, names, train, train, passed), test, survey=survey)


def _without_split(folder: Path, root: _Folder, held: Sequence[_Folder], passed: _Passed) -> Listing:
    """Class folders at the top; what is called test/ or val/ beside them holds images without a class."""
    full = [below for below in root.folders if below.count]
    if full and all(split_word(below.name) for below in full):
        raise SourceError(
            f"{_at(folder)}: found {_listed(full)}, which are splits, but no training folder with class folders; "
            "expected train/CLASS/ and, where there is a test split, test/CLASS/."
        )
    if nested := [below for below in held if any(inner.count for inner in below.folders)]:
        raise SourceError(
            f"{_at(folder)}: found {_listed(nested)} with class folders, but no train/ beside it; move the class "
            f"folders {few([f'{b.place}/' for b in full if b not in held])} into train/."
        )
    classes = _checked_classes(folder, root, [below for below in root.folders if below not in held], passed)
    names = tuple(item.name for item in classes)
    flat = [f"{item.place}/ ({_images(item)} without class folders, so no test split)" for item in held if item.count]
    survey = Survey("class folders", (*flat, *_beside(root), *passed.texts()), tuple(_deeper(classes)))
    return Listing(names, _items(classes, names, root, root, passed), survey=survey)


def _checked_classes(folder: Path, above: _Folder, classes: list[_Folder], passed: _Passed) -> list[_Folder]:
    """The class folders, sorted; refused where they are none, or one could take them for something else."""
    where = _at(folder / above.place)
    if not classes:
        here = folder / above.place
        hint = (
            f"; if '{shown_name(here.name)}' is a class with its {_images_count(len(above.images))}, give the folder "
            f"above: {_at(here.parent)}"
            if above.images and here.name
            else ""
        )
        raise SourceError(f"{where}: found no class folder; expected one folder of images per class{hint}.")
    for item in classes:
        if (shown := shown_name(item.place)) != item.place and any("\udc80" <= c <= "\udcff" for c in item.place):
            raise SourceError(
                f"{_at(folder)}: the folder name '{shown}' is not UTF-8 (it may come from another system); rename it, "
                "as it becomes the name of a class."
            )
    check_folder_names(PurePosixPath(item.place).name for item in classes)
    full = [item for item in classes if item.count]
    hollow = [item for item in full if item.is_hollow]
    if hollow and len(hollow) == len(full) and not _have_an_inner_folder(hollow):
        _refuse_hollow(folder, where, hollow)
    if full and all(split_word(item.name) for item in full):
        raise SourceError(
            f"{where}: found only {_listed(full)}, which are names of splits, not of classes; give the folder that has "
            "train/ with class folders in it."
        )
    if passed.is_partial:
        passed.empty += [f"{shown_name(item.place)}/" for item in classes if not item.count]
        classes = [item for item in classes if item.count]
        if not classes:
            raise SourceError(f"{where}: found no image in any class folder; expected one folder of images per class.")
    if empty := next((item for item in classes if not item.count), None):
        kinds = ", ".join(SUFFIXES[:5])
        unread = "; ".join(passed.texts()) if passed.unread else ""
        hint = f" that is read (left out: {unread})" if unread else ""
        raise SourceError(
            f"{_at(folder / empty.place)}: the class has no image{hint}; add one ({kinds}, ...) or remove the folder, "
            "or leave it out with `partial: true`."
        )
    return sorted(classes, key=lambda item: (item.name, item.place))


def _have_an_inner_folder(hollow: Sequence[_Folder]) -> bool:
    """Every class keeps its images in one folder called images/ (as Tiny-ImageNet does)."""
    return all(len(item.folders) == 1 and item.folders[0].name.casefold() in INNER for item in hollow)


def _refuse_hollow(folder: Path, where: str, hollow: Sequence[_Folder]) -> None:
    shown = few([f"{shown_name(i.name)}/ ({few([f'{b.name}/' for b in i.folders if b.count])})" for i in hollow])
    if all(split_word(below.name) for item in hollow for below in item.folders if below.count):
        raise SourceError(
            f"{where}: the class folders hold splits: {shown}; expected the splits above the classes; move the images "
            "to train/CLASS/ and test/CLASS/."
        )
    deeper = hollow[0]
    while len(deeper.folders) == 1 and deeper.folders[0].is_hollow:
        deeper = deeper.folders[0]
    raise SourceError(
        f"{where}: the class folders hold only folders: {shown}; expected images right inside; if those are the "
        f"classes, give --source {shown_name(str(folder / deeper.place))}"
        + ("." if len(hollow) == 1 else ", or merge the folders of a class.")
    )


def _is_unlabelled(held: _Folder, names: Sequence[str]) -> bool:
    """No class folders in it, or one folder that is no class."""
    full = [below for below in held.folders if below.count]
    return not full or (len(full) == 1 and full[0].name not in names and len(names) > 1)


def _items(
    folders: Sequence[_Folder], names: tuple[str, ...], split: _Folder, train: _Folder, passed: _Passed
) -> tuple[Listed, ...]:
    places = {name: place for place, name in enumerate(names)}
    items: list[Listed] = []
    if split is not train:
        check_folder_names(PurePosixPath(item.place).name for item in folders)
    for item in sorted(folders, key=lambda item: (item.name, item.place)):
        if item.name not in places:
            if passed.is_partial:
                if item.count:
                    passed.unknown.append(f"{shown_name(item.place)}/")
                continue
            near = next((name for name in names if name.casefold() == item.name.casefold()), None)
            hint = f" (there it is {near!r})" if near else ""
            raise SourceError(
                f"{shown_name(item.place)}: no such class in {train.place}/{hint}; add it there or remove it here."
            )
        items += [Listed(key, places[item.name]) for key in sorted(item.keys, key=lambda key: (_nfc(key), key))]
    return tuple(items)


def _tree(root: Path, passed: _Passed) -> _Folder:
    """Everything below a folder but what systems put there; a linked folder is refused, never walked."""
    top = _Folder("")
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder.place) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(
                f"{_at(root / folder.place)}: cannot be read ({error.strerror}); check the folder and its rights."
            ) from None
        for entry in entries:
            key = f"{folder.place}/{entry.name}" if folder.place else entry.name
            if (root / key).is_dir() if entry.is_symlink() else entry.is_dir():
                if _is_system_folder(entry.name):
                    passed.system.add(shown_name(entry.name))
                elif entry.is_symlink() and passed.is_partial:
                    passed.linked.append(f"{shown_name(key)}/")
                elif entry.is_symlink():
                    raise SourceError(
                        f"{_at(root / key)}: got a linked folder, expected a real one; copy its images here."
                    )
                elif key.count("/") == DEEPEST:
                    raise SourceError(f"{_at(root / key)}: folders lie {DEEPEST} deep; move the images further up.")
                else:
                    folder.folders.append(_Folder(key))
            elif _is_image(entry, key, passed):
                folder.images.append(key)
        waiting += folder.folders
    return top


def _is_image(entry: "os.DirEntry[str]", key: str, passed: _Passed) -> bool:
    """Whether an entry that is no folder is an image to read; counts it otherwise."""
    name, suffix = entry.name, PurePosixPath(entry.name).suffix.lower()
    is_read = suffix in SUFFIXES or OPTIONAL.get(suffix) in formats()
    if name.startswith("._") or name.lower() in SYSTEM_FILES:
        return False
    if name.startswith("."):
        passed.hidden += is_read
    elif not entry.is_symlink() and not entry.is_file():
        passed.special.append(shown_name(key))
    elif is_read:
        return True
    elif suffix in UNREAD or suffix in OPTIONAL:
        passed.unread[suffix].append(shown_name(key))
    elif name not in METADATA_FILES:
        passed.other[suffix or "no suffix"] += 1
    return False


def _is_system_folder(name: str) -> bool:
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS or bool(re.fullmatch(r"found\.\d{3}", name, re.I))


def _beside(folder: _Folder) -> Iterator[str]:
    if folder.images:
        yield f"{_images_count(len(folder.images))} beside the class folders"


def _deeper(classes: Sequence[_Folder]) -> Iterator[str]:
    """Where some classes alone keep their images in folders below."""
    hollow = [item for item in classes if item.is_hollow]
    if hollow and not _have_an_inner_folder(hollow):
        inner = few([f"{below.name}/" for below in hollow[0].folders if below.count])
        more = f" (and {len(hollow) - 1:,} more such classes)" if len(hollow) > 1 else ""
        yield f"class '{hollow[0].name}' has no image right inside; used are those in {inner}{more}"


def _images(folder: _Folder) -> str:
    return _images_count(folder.count)


def _images_count(count: int) -> str:
    return _counted(count, "image", "images")


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _listed(folders: Sequence[_Folder]) -> str:
    return ", ".join(f"{shown_name(folder.place)}/" for folder in folders[:5])


def _at(path: Path) -> str:
    return f"'{shown_name(str(path))}'"


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
