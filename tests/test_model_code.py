"""Code of a model folder is never run and nothing is asked: by the calls in the source, and with `yes` on stdin."""

import ast
import io
import json
import shutil
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.models.captioning import Captioner, LanguageModel
from diffaug_datasets.models.encoders import Encoder, Judge

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(str(files("diffaug_datasets"))) / "assets" / "tiny"
LOADS = ("from_pretrained", "from_config", "from_single_file")
NO_CODE = ("Scheduler",)  # diffusers' schedulers are numbers, and take no such option
NO_WEIGHTS = ("Tokenizer", "Processor", "Config", "Scheduler")


def loads(source: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Line, what it is called on, and the constant keywords of every call that opens a model folder."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADS:
            if node.func.attr == "from_single_file" and ast.unparse(node.args[0]) == "tensors":
                continue  # weights that safetensors has read already: no file of them is opened
            constants = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            yield node.lineno, ast.unparse(node.func.value), constants


def careless(source: str) -> list[str]:
    """What is wrong with a source's loads."""
    found = []
    for line, kind, constants in loads(source):
        if not kind.endswith(NO_CODE) and constants.get("trust_remote_code") is not False:
            found.append(f"line {line}: {kind} may run code; pass trust_remote_code=False")
        has_weights = not kind.endswith(NO_WEIGHTS) and not source_of_words(source, line)
        if has_weights and constants.get("use_safetensors") is not True:
            found.append(f"line {line}: {kind} may open a pickle; pass use_safetensors=True")
    return found


def source_of_words(source: str, line: int) -> bool:
    """Whether a line stands in the one function that reads tokenizers of a class that it is given."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    around = [f.name for f in functions if f.lineno <= line <= (f.end_lineno or f.lineno)]
    return around == ["read_tokenizer"]


def test_every_load_of_a_model_folder_is_a_careful_one() -> None:
    paths = [p for place in ("diffaug_datasets", "builders", "scripts") for p in (ROOT / place).rglob("*.py")]
    assert sum(len(list(loads(p.read_text("utf-8")))) for p in paths) > 5
    wrong = {p.relative_to(ROOT).as_posix(): found for p in paths if (found := careless(p.read_text("utf-8")))}
    assert not wrong


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("AutoModel.from_pretrained(folder, use_safetensors=True)", ["may run code"]),
        ("AutoTokenizer.from_pretrained(folder)", ["may run code"]),
        ("AutoModel.from_pretrained(folder, trust_remote_code=ask, use_safetensors=True)", ["may run code"]),
        ("kind.from_pretrained(folder, trust_remote_code=False)", ["may open a pickle"]),
        ("kind.from_single_file(path)", ["may run code", "may open a pickle"]),
        ("kind.from_single_file(tensors)", []),
        ("AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)", []),
    ],
)
def test_a_careless_load_is_found(call: str, said: list[str]) -> None:
    found = careless(call)
    assert len(found) == len(said) and all(words in line for words, line in zip(said, found, strict=True))


EVIL = """open({mark!r}, "w").close()
class Evil:
    @classmethod
    def from_pretrained(cls, *a, **k): return cls()
    @classmethod
    def register_for_auto_class(cls, *a): pass
"""
KINDS = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoModelForImageTextToText", "AutoTokenizer")
KINDS += ("AutoModelForCausalLM", "AutoImageProcessor", "AutoProcessor")


def with_code(folder: Path, source: Path, name: str, **changes: Any) -> Path:
    """A copy of a packaged model with code of its own, whose import leaves a mark."""
    shutil.copytree(source, folder)
    (folder / "evil.py").write_text(EVIL.format(mark=str(folder.with_suffix(".mark"))))
    path = folder / name
    changes |= {"auto_map": dict.fromkeys(KINDS, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_code_of_a_folder_is_never_run_whatever_stdin_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder, judge, unknown = ASSETS / "encoder", ASSETS / "judge", {"model_type": "evilmodel"}
    folders = [
        with_code(tmp_path / "encoder", encoder, "config.json", **unknown),
        with_code(tmp_path / "images", encoder, "preprocessor_config.json", image_processor_type="EvilProcessor"),
        with_code(tmp_path / "words", encoder, "tokenizer_config.json", tokenizer_class="EvilTokenizer"),
        with_code(tmp_path / "judge", judge, "config.json", **unknown),
        with_code(tmp_path / "captioner", encoder, "config.json", **unknown),
        with_code(tmp_path / "summariser", encoder, "config.json", **unknown),
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 200))
    said = []
    for kind, folder in zip((Encoder, Encoder, Encoder, Judge, Captioner, LanguageModel), folders, strict=True):
        try:
            kind.load(str(folder))
            said.append("loaded without it")
        except BackboneError as error:
            said.append(str(error))
    assert not list(tmp_path.glob("*.mark"))
    assert "[y/N]" not in "".join(capfd.readouterr()) and sys.stdin.read() == "yes\n" * 200
    assert all("cannot be loaded" in line or "no language model" in line or line.startswith("loaded") for line in said)
    assert "it brings code of its own, which is never run" in said[0]
