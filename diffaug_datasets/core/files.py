"""Small files: texts read whole and within bounds, writes that leave no half file, and the YAML of recipes.

A text may be saved as other systems and programs do. What is written goes into a temporary file first, whose name says
which machine and process writes it, so that nobody sweeps another's away; then it takes the old file's place at once.

YAML is JSON's kinds of values in YAML's spelling, and nothing that means other than it looks. Only `true` and `false`
are booleans and only decimal numbers are numbers, as in YAML 1.2: `no`, `5_000`, `010`, `12:30` and `2024-01-01` are
texts, which the key's own type then reads. A key that comes twice, aliases and merge keys (a few lines that stand for
gigabytes), tags, several documents and deep nesting are refused, with their line.
"""

import codecs
import difflib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field

from diffaug_datasets.core.errors import RunError, one_line

MOST_BYTES = 10_000_000
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # other text reads backwards after them
_STRANGE = {  # by Unicode category
    "Cc": "control character",
    "Cs": "lone surrogate (bytes that are not UTF-8)",
    "Zl": "line separator",
    "Zp": "paragraph separator",
}
_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
REFUSED = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)  # by file systems without links
ABANDONED_SECONDS = 24 * 3600.0
_TEMPORARY_NAME = re.compile(r"\.(?P<file>.+)\.(?P<machine>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
DEEPEST = 50  # levels of a YAML document
_READER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DECIMAL = r"(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
_FLOAT = rf"[-+]?(?:{_DECIMAL}|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))"
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,18})", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)


class FileDigest(BaseModel):
    """One finished file, by its bare name in the unit's folder."""

    model_config = ConfigDict(frozen=True)

    file: str = Field(pattern=r"^\w[\w.-]*$")
    sha256: str
    size: int


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a file: UTF-8, or what its byte-order mark says; line ends as `\\n`.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: a pipe or device, more than `most` bytes, or no such text; one sentence without the path.
    """
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise ValueError("is a pipe or a device; give a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"has more than {most:,} bytes; it is not such a file, or must be made smaller")
    return decode_text(data)


def decode_text(data: bytes) -> str:
    """The text of a file's bytes: UTF-8, or UTF-8, UTF-16 or UTF-32 with a byte-order mark; line ends as `\\n`.

    Raises:
        ValueError: other bytes; names the line and what it probably is.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        raise ValueError("holds NUL bytes, so it is no text, or UTF-16 without a byte-order mark; save it as UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(f"begins as {encoding.upper()} and does not go on so; save it as UTF-8") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} holds the byte 0x{data[error.start]:02x}, which is not UTF-8 (Windows-1252, Latin-1?); "
            "save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strange_character(text: str, allowed: str = "\t\n\r") -> str:
    """The first character of a text that no terminal, file or Hub takes, as words, or ''.

    Control characters but for those allowed, separators of lines and paragraphs, marks that turn the direction of
    writing, and lone surrogates: what is left of bytes that are not UTF-8.
    """
    for character in text:
        word = "mark of direction" if character in TURNING else _STRANGE.get(unicodedata.category(character), "")
        if word and character not in allowed:
            return f"the {word} U+{ord(character):04X}"
    return ""


def write_atomically(path: Path, write: Callable[[Path], object]) -> FileDigest:
    """Write beside it, fsync, replace: a reader sees the old file, or the new one, whole.

    Raises:
        RunError: the disk is full or the folder is read-only; nothing half-written is left.
    """
    with _unfinished(path, write) as (unfinished, done):
        _replace(unfinished, path)
    return done


def write_once(path: Path, write: Callable[[Path], object]) -> FileDigest:
    """Write beside it, fsync, and take the name if nobody has it: what is there is never overwritten.

    Where the name belongs to the same bytes, that file is it. Where it belongs to others, the file is called after its
    own digest, `STEM-0123456789abcdef.SUFFIX`. The answer says which name it has.

    Raises:
        RunError: the disk is full or the folder is read-only; nothing half-written is left.
    """
    with _unfinished(path, write) as (unfinished, done):
        own = path.with_name(f"{path.stem}-{done.sha256[:16]}{path.suffix}")
        for target in (path, own):
            if claim(unfinished, target) or _is(target, done):
                return done.model_copy(update={"file": target.name})
        _replace(unfinished, own)  # a damaged file under its own digest's name
    return done.model_copy(update={"file": own.name})


def plain_name(file: FileDigest) -> str:
    """The name that `write_once` was asked for."""
    path = Path(file.file)
    return f"{path.stem.removesuffix(f'-{file.sha256[:16]}')}{path.suffix}"


@contextmanager
def _unfinished(path: Path, write: Callable[[Path], object]) -> Iterator[tuple[Path, FileDigest]]:
    """A whole, synced temporary file beside a path and what it holds; gone afterwards, with its folder synced."""
    unfinished = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        _sync(unfinished)
        yield unfinished, FileDigest(file=path.name, sha256=sha256_file(unfinished), size=unfinished.stat().st_size)
        unfinished.unlink(missing_ok=True)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise RunError(f"{path.parent}: cannot write {path.name} ({reason}); free space or check rights.") from None
        raise


def _is(path: Path, content: FileDigest) -> bool:
    try:
        return path.stat().st_size == content.size and sha256_file(path) == content.sha256
    except FileNotFoundError:
        return False


def _replace(unfinished: Path, path: Path) -> None:
    """Give a finished file its name; where the file system renames nothing, by a copy."""
    try:
        unfinished.replace(path)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        write_synced(path, unfinished)


def claim(finished: Path, path: Path) -> bool:
    """Give a finished temporary file its name if nobody has it; False where somebody has. Of several one succeeds.

    By a hard link, which is there whole or not at all; where the file system has none, by a file that must be new, and
    whose content is whole a moment later.

    Raises:
        OSError: neither can be made.
    """
    try:
        os.link(finished, path)
        return True
    except FileExistsError:
        return path.samefile(finished)  # over NFS the answer to a link that was made may have been lost
    except OSError as error:
        if error.errno not in REFUSED:
            raise
    try:
        with path.open("xb"):
            pass
    except FileExistsError:
        return False
    try:
        write_synced(path, finished)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    return True


def write_synced(path: Path, content: bytes | Path, *, sync: bool = True) -> None:
    """Fill a file with bytes or another file's content; `sync`: it is on the disk then."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)
    if sync:
        _sync(path)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk; Windows opens no folder."""
    if os.name != "nt":
        _sync(folder)


def write_text(path: Path, text: str) -> FileDigest:
    """Write a small text file atomically."""
    return write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> FileDigest:
    """Write what is already in memory atomically."""
    return write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def sha256_file(path: Path) -> str:
    """sha256 hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_path(path: Path) -> Path:
    """A new name in the same folder: `.FILE.MACHINE.PID.RANDOM.tmp`, short enough wherever the file's own name is."""
    return path.with_name(f".{path.name[:40]}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@cache
def machine() -> str:
    """Host name and eight digits for its boot and pid namespace: where they are equal, process ids mean the same."""
    host = socket.gethostname()
    seen = (host, _content(Path("/proc/sys/kernel/random/boot_id")), _namespace())
    name = re.sub(r"[^A-Za-z0-9-]", "-", host)[:24] or "host"
    return f"{name}-{hashlib.sha256(chr(0).join(seen).encode()).hexdigest()[:8]}"


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def is_temporary(path: Path) -> bool:
    """Whether a file is called as `temporary_path` calls them."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def finished_name(path: Path) -> str:
    """The name of the file that a temporary one was to become, at most its first 40 letters."""
    match = _TEMPORARY_NAME.fullmatch(path.name)
    return match["file"] if match else path.name


def writer_is_gone(path: Path) -> bool:
    """Whether a temporary file is of a process of this machine and pid namespace that has ended."""
    match = _TEMPORARY_NAME.fullmatch(path.name)
    return match is not None and match["machine"] == machine() and not _alive(int(match["pid"]))


def is_abandoned(path: Path, now: float) -> bool:
    """Whether nothing was written into a file for a day before `now`, a time of the same file system."""
    return now - path.stat().st_mtime > ABANDONED_SECONDS


def _alive(pid: int) -> bool:
    if born(pid) == "":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def born(pid: int) -> str | None:
    """When a process of this machine began, in its own ticks; '' where it has ended, None where nothing tells."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def is_gone(machine_name: str, pid: int, began: str | None) -> bool:
    """Whether a process is known to have ended: one of this machine and pid namespace. Of others nothing is known."""
    if machine_name != machine():
        return False
    now = born(pid)
    return not _alive(pid) if now is None or began is None else now != began


class _Loader(_READER):  # type: ignore[misc]
    """The safe loader with the scalars above."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what any version of YAML would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """A list that stands in two places is written twice."""
        return True


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{_FLOAT})\Z"), list("-+0123456789."))


def load_yaml(text: str) -> Any:
    """The content of one document: mappings, lists, texts, numbers, booleans and None.

    Raises:
        ValueError: no YAML, or one of what is refused; one line without a full stop, with the line's number.
    """
    try:
        _check_structure(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506, a safe loader
    except (yaml.YAMLError, UnicodeError) as error:
        hint = "; indent with spaces, not tabs" if re.search(r"^ *\t", text, re.MULTILINE) else ""
        reason = one_line(str(error).replace('in "<unicode string>", ', "in "), 300)
        raise ValueError(f"{reason.rstrip('.')}{hint}") from None


def dump_yaml(content: Any) -> str:
    """The document of a JSON-like value, keys in their order; `load_yaml` gives the same value back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_structure(text: str) -> None:
    """Refuse what `load_yaml` refuses before anything is built: flat over the parser's events, so depth is harmless."""
    mappings: list[dict[str, int] | None] = []  # of the open collections: a mapping's keys and their lines, or None
    at_key: list[bool] = []
    for event in yaml.parse(text, Loader=_READER):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line} holds the alias *{event.anchor}; write out what it stands for")
        if isinstance(event, yaml.CollectionEndEvent):
            mappings.pop()
            at_key.pop()
        elif isinstance(event, yaml.NodeEvent):
            if (tag := getattr(event, "tag", None)) is not None:
                raise ValueError(f"line {line} holds the tag {tag!r}; a value needs none, a text quotes")
            if mappings and (keys := mappings[-1]) is not None:
                if at_key[-1]:
                    _check_key(event, keys, line)
                at_key[-1] = not at_key[-1]
            if isinstance(event, yaml.CollectionStartEvent):
                mappings.append({} if isinstance(event, yaml.MappingStartEvent) else None)
                at_key.append(True)
                if len(mappings) > DEEPEST:
                    raise ValueError(f"line {line} is nested more than {DEEPEST} levels deep")


def _check_key(event: Any, keys: dict[str, int], line: int) -> None:
    if not isinstance(event, yaml.ScalarEvent):
        raise ValueError(f"line {line} has a list or mapping for a key; keys are names")
    name = str(event.value)
    if name == "<<":
        raise ValueError(f"line {line} holds the merge key <<; write out what it stands for")
    if name in keys:
        raise ValueError(f"line {line} has the key {name!r}, which line {keys[name]} has too; keep one of them")
    keys[name] = line


def mistyped_folder(text: str) -> str:
    """The folder here that a text such as `runs/mnie` seems to mean; '' where nothing is near it, or it is there.

    For a place that could be a name of the Hub too, before the Hub is asked.
    """
    place = Path(text)
    if place.is_absolute() or not 1 <= len(place.parts) <= 2 or place.exists() or not place.parent.is_dir():
        return ""
    near = difflib.get_close_matches(place.name, [path.name for path in place.parent.iterdir() if path.is_dir()], n=1)
    return str(place.parent / near[0]) if near else ""
