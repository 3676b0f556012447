"""What people get wrong: exit code 2, one clear sentence, no traceback, nothing half-written."""

import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Answer, Command
from PIL import Image

from diffaug_datasets.core.errors import RecipeError, SourceError
from diffaug_datasets.core.method import discover_methods
from diffaug_datasets.core.recipe import Recipe
from diffaug_datasets.sources.real import read_real

OWN = ("--set", "backbone=tiny", "--set", "per_class=1", "--set", "config.num_inference_steps=2")
SMALL = (*OWN[2:], "--set", "include_test=false")
ALLOWED = ", ".join(sorted(discover_methods()))


def picture(path: Path, mode: str = "RGB", **saved: object) -> Path:
    """Noise of 40 x 30 pixels as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((40, 30), 60).convert("RGB").convert(mode).save(path, **saved)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two classes of two images."""
    for place in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        picture(tmp_path / "images" / place)
    return tmp_path / "images"


@pytest.fixture
def plan_own(diffaug: Command, images: Path, tmp_path: Path) -> Callable[..., Answer]:
    """`diffaug plan` over the folder; a refusal must leave no run folder."""

    def call(method: str = "img2img", *words: str) -> Answer:
        folder = tmp_path / "run"
        said = diffaug("plan", f"imagefolder_full_{method}", "--source", images, *OWN, "--run", folder, *words)
        assert folder.exists() == (said.code == 0)
        return said

    return call


def test_an_empty_class_folder(plan_own: Callable[..., Answer], images: Path) -> None:
    (images / "empty").mkdir()
    assert plan_own().sentence == (
        f"'{images / 'empty'}': the class has no image; add one (.jpg, .jpeg, .jpe, .png, .webp, ...) "
        "or remove the folder, or leave it out with `partial: true`."
    )


def test_a_class_with_one_image_is_used(plan_own: Callable[..., Answer], images: Path) -> None:
    (images / "a" / "1.png").unlink()
    assert plan_own().code == 0


def test_a_class_with_one_image_where_pairs_are_wanted(plan_own: Callable[..., Answer], images: Path) -> None:
    (images / "a" / "1.png").unlink()
    one = ("--set", "config.suffixes=[in the snow]", "--set", "config.single_image_policy=error")
    assert "class 'a' has one image, so no pair; set config.single_image_policy to" in plan_own("diffii", *one).sentence


@pytest.mark.parametrize("damage", ["truncated", "nonsense", "empty"])
def test_a_corrupt_image(plan_own: Callable[..., Answer], images: Path, damage: str) -> None:
    path = images / "a" / "1.png"
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[: len(data) // 2], "nonsense": data[:8] + b"nonsense" * 9, "empty": b""}[damage]
    )
    reason = {
        "truncated": "cut short, the file ends before the picture does",
        "nonsense": "cut short, the file ends before the picture does",
        "empty": "empty (0 bytes)",
    }[damage]
    way_on = "replace or remove it, or leave it out with `on_bad_image: skip`."
    assert plan_own().sentence == f"a/1.png: {reason}; {way_on}"
    assert plan_own("img2img", "--dry-run").sentence == f"a/1.png: {reason}; {way_on}"


def test_many_corrupt_images_are_told_at_once_and_can_be_skipped(
    plan_own: Callable[..., Answer], images: Path, tmp_path: Path
) -> None:
    noise = picture(images / "a" / "2.jpg").read_bytes()
    (images / "a" / "2.jpg").write_bytes(noise[: len(noise) * 2 // 3])
    (images / "b" / "2.jpg").write_bytes(noise[: len(noise) // 3])
    (images / "b" / "3.jpg").write_bytes(b"")
    (images / "b" / "4.jpg").write_bytes(b"<html><body>404</body></html>")
    (images / "b" / "5.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    (images / "b" / "6.jpg").symlink_to(images / "gone.jpg")
    said = plan_own().sentence
    reasons = (
        "cut short, the file ends before the picture does: a/2.jpg, b/2.jpg; empty (0 bytes): b/3.jpg; a web page "
        "(HTML) instead of an image: b/4.jpg; a Git LFS pointer instead of the image (`git lfs pull` fetches it): "
        "b/5.jpg; a link to a file that is not there: b/6.jpg"
    )
    way_on = "Replace or remove them, or leave them out with `on_bad_image: skip`."
    assert said == f"6 of 10 images cannot be used: {reasons}. {way_on}"
    skipping = plan_own("img2img", "--set", "on_bad_image=skip")
    assert skipping.code == 0 and "4 real images" in skipping.out
    assert f"warning: 6 of 10 images cannot be used and are left out: {reasons}\n" in skipping.out
    from diffaug_datasets import Run

    header = Run.open(tmp_path / "run").plan.header
    assert header.recipe["on_bad_image"] == "skip" and header.warnings[0].startswith("6 of 10 images cannot be used")


def test_pipes_devices_and_giants_are_never_opened(plan_own: Callable[..., Answer], images: Path) -> None:
    os.mkfifo(images / "a" / "2.jpg")
    os.mkfifo(images / "metadata.csv")
    said = plan_own()
    assert said.code == 0 and "4 real images" in said.out
    assert "left out  2 pipes or devices (a/2.jpg, metadata.csv)" in said.out


def test_a_link_to_a_pipe_and_a_sparse_giant_are_named(plan_own: Callable[..., Answer], images: Path) -> None:
    os.mkfifo(images / "pipe")
    (images / "a" / "2.jpg").symlink_to(images / "pipe")
    with (images / "a" / "3.jpg").open("wb") as file:
        file.truncate(1 << 40)
    said = plan_own().sentence
    assert "a named pipe, socket or device, which is not opened: a/2.jpg" in said
    assert "got 1,099,511,627,776 bytes, expected at most 536,870,912: a/3.jpg" in said


def test_names_that_are_no_text(plan_own: Callable[..., Answer], images: Path) -> None:
    """Latin-1 names from another system: a file is used, a class is one sentence."""
    try:
        (images / "a" / "0.png").rename(images / "a" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes no such names")
    (images / "metadata.csv").write_text("file_name,license\nb/0.png,CC0\n")
    (images / "b" / "1.png").write_bytes((images / "b" / "0.png").read_bytes())
    shutil.copy(images / "a" / os.fsdecode(b"caf\xe9.png"), images / "a" / os.fsdecode(b"d\xe9j\xe0.png"))
    said = plan_own()
    assert said.code == 0 and r"a/caf\xe9.png = a/d\xe9j\xe0.png" in said.out
    picture(images / os.fsdecode(b"fran\xe7ais") / "0.png")
    with pytest.raises(SourceError, match=r"got the source '.*/b\\xe9', whose name is not UTF-8; rename it"):
        read_real("imagefolder", picture(images / os.fsdecode(b"b\xe9") / "a" / "0.png").parents[1])
    shutil.rmtree(images / os.fsdecode(b"b\xe9"))
    with pytest.raises(SourceError, match=r"folder name 'fran\\xe7ais' is not UTF-8 .*; rename it"):
        read_real("imagefolder", images)


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\u202eb"])
def test_class_names_with_control_characters(plan_own: Callable[..., Answer], images: Path, name: str) -> None:
    picture(images / name / "0.png")
    said = plan_own().sentence
    assert "in its name; rename it." in said and f"U+{ord(name[1]):04X}" in said and name not in said


def test_a_dry_run_looks_as_hard_as_a_plan(diffaug: Command, images: Path, tmp_path: Path) -> None:
    line = ("plan", "imagefolder_full_img2img", "--source", images, *OWN, "--run", tmp_path / "run")
    shutil.copy(images / "a" / "0.png", images / "b" / "2.png")
    told = [diffaug(*line, "--dry-run"), diffaug(*line)]
    warnings = [[text for text in said.out.splitlines() if "warning:" in text] for said in told]
    assert warnings == 2 * [
        [
            "  warning: 1 image is there in more than one class, so its labels contradict each other: "
            "a/0.png = b/2.png",
            "  warning: 2 classes have a code for a name, which no model knows ('a', 'b'); say under `classes:` in "
            "the recipe what prompts are to call them",
        ]
    ]
    picture(images / "b" / "3.png")
    assert diffaug(*line, "--dry-run").sentence == diffaug(*line).sentence
    assert "holds another plan" in diffaug(*line, "--dry-run").sentence
    (images / "b" / "3.png").write_bytes(b"")
    assert "b/3.png: empty (0 bytes)" in diffaug(*line, "--dry-run").sentence


def test_an_image_too_large(plan_own: Callable[..., Answer], images: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    chunks = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts]
    (images / "a" / "big.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert plan_own().sentence == (
        "a/big.png: got an image of more than 89,478,485 pixels; make it smaller first, or leave it out with "
        "`on_bad_image: skip`."
    )


def test_cmyk_rotated_grey_and_palette_images_are_used(
    plan_own: Callable[..., Answer], diffaug: Command, images: Path, tmp_path: Path
) -> None:
    upside_down = Image.Exif()
    upside_down[0x0112] = 6
    picture(images / "a" / "cmyk.jpg", "CMYK")
    picture(images / "a" / "grey.png", "L")
    picture(images / "b" / "palette.png", "P")
    picture(images / "b" / "transparent.png", "LA")
    picture(images / "b" / "rotated.jpg", exif=upside_down)
    assert plan_own("img2img", "--set", "per_class=5").code == 0
    said = diffaug("generate", tmp_path / "run", "--workers", 1)
    assert "10 images written, 0 failed" in said.out
    from diffaug_datasets import load

    rows = load(tmp_path / "run")
    assert {row["image"].mode for row in rows} == {"RGB"}
    page = (tmp_path / "run" / "README.md").read_text("utf-8")
    assert "real images keep the bytes that they came with, grey and CMYK ones too" in page


def test_awkward_class_names_are_kept_verbatim(
    plan_own: Callable[..., Answer], diffaug: Command, images: Path, tmp_path: Path
) -> None:
    names = ("with space", 'it\'s "quoted"', "ünï é", "日本", "semi;colon $HOME", "-dash", "[brackets]")
    for name in names:
        picture(images / name / "0.png")
    assert plan_own().code == 0
    assert "9 images written, 0 failed" in diffaug("generate", tmp_path / "run", "--workers", 1).out
    assert diffaug("report", tmp_path / "run").code == 0
    from diffaug_datasets import load

    assert set(load(tmp_path / "run").features["label"].names) == {"a", "b", *names}


def test_a_class_name_with_a_slash_survives(diffaug: Command, tmp_path: Path) -> None:
    from diffaug_datasets import Run

    assert diffaug("plan", "fashion_2shot_img2img", *SMALL, "--run", tmp_path / "run").code == 0
    assert "T-shirt/top" in Run.open(tmp_path / "run").plan.header.class_names


@pytest.mark.parametrize(("first", "second"), [("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
def test_class_names_that_other_machines_merge(
    plan_own: Callable[..., Answer], images: Path, first: str, second: str
) -> None:
    for name in (first, second):
        picture(images / name / "0.png")
    if len(list(images.iterdir())) == 3:
        pytest.skip("this file system merges them itself")
    assert plan_own().sentence.endswith(
        "differ only in case or Unicode form, which other machines cannot tell apart; rename or merge them."
    )


RECIPES = {
    "an unknown method": ("method=dif_ii", f"method: got 'dif_ii', expected one of {ALLOWED}; did you mean 'diff_ii'?"),
    "a misspelt key": ("per_imag=3", "per_imag: unknown key; did you mean 'per_image'; allowed are schema, builder,"),
    "a misspelt key inside": (
        "config.split_rato=1",
        "config.split_rato: unknown key; did you mean 'split_ratio'; allowed are concepts, num_inference_steps,",
    ),
    "a value out of range": (
        "config.split_ratio=3",
        "config.split_ratio: got 3, input should be less than or equal to 1",
    ),
    "a value of another kind": ("seed=abc", "seed: got 'abc', input should be a valid integer"),
    "a value that is none of the allowed": (
        "targets=rare",
        "targets: got 'rare', input should be 'all', 'many', 'medium'",
    ),
    "no value": ("seed", "--set: got 'seed', expected KEY=VALUE such as per_class=10 or config.strength=0.3."),
    "half a YAML value": ("seed=[1", "--set seed: got '[1', expected a YAML value ("),
    "an unknown protocol": ("protocol=5shots", "protocol: got '5shots', expected one of full, 5shot, 10shot, "),
    "an unknown builder": ("builder=fashon", "builder: got 'fashon', expected one of aircraft, "),
    "images without end": ("per_class=1000000000", "per_class: got 1000000000, input should be less than or equal to"),
    "images per image without end": ("per_image=1e308", "per_image: got 1e+308, input should be less than or equal to"),
    "no number": ("per_image=.nan", "per_image: got nan, expected a finite number."),
    "infinite": ("filters=[{column: clip_score, minimum: -.inf}]", "filters.0.minimum: got -inf, expected a finite"),
    "a batch without end": ("batch_size=1000000000", "batch_size: got 1000000000, input should be less than or equal"),
    "shards without end": ("shard_rows=1000000000", "shard_rows: got 1000000000, input should be less than or equal"),
    "threads without end": ("threads=1000000000", "threads: got 1000000000, input should be less than or equal"),
    "steps without end": ("config.num_inference_steps=1000000000", "config.num_inference_steps: got 1000000000, input"),
    "training without end": ("config.concepts.steps=1000000000", "config.concepts.steps: got 1000000000, input should"),
    "pixels without end": ("backbone.height=1000000000", "backbone.height: got 1000000000, input should be less than"),
    "shots without end": ("protocol=1000000000shot", "protocol: got '1000000000shot', expected one of full, 5shot,"),
    "a trial without end": (f"protocol=5shot_seed{'9' * 5000}", "protocol: got '5shot_seed999"),
    "a seed of many digits": (f"seed={'9' * 30}", f"seed: got '{'9' * 30}', "),
    "a number with a line below": ("protocol=5_000", "protocol: got '5_000', expected one of full, 5shot, 10shot,"),
    "a key twice": (
        "config={split_ratio: 0, split_ratio: 1}",
        "--set config: got '{split_ratio: 0, split_ratio: 1}', ex",
    ),
    "an alias": (
        "config={a: &a 1, b: *a}",
        "--set config: got '{a: &a 1, b: *a}', expected a YAML value (line 1 holds ",
    ),
    "deep nesting": (
        f"config={'[' * 1000}",
        f"--set config: got '{'[' * 60}', expected a YAML value (line 1 is nested",
    ),
    "a deep key": (f"{'a.' * 60}b=1", "a.a.a.a.a"),
    "a control character": (
        'config.negative_prompt="\\e[31m"',
        "config.negative_prompt: got '\\x1b[31m', which holds the",
    ),
    "a key that is a number": ("config={1: 2}", "config: keys must be text (got 1); put it in quotes."),
    "a missing model folder": (
        "backbone=/no/such/model",
        "backbone '/no/such/model' is neither a folder nor a Hub id: give an existing folder in diffusers format,",
    ),
    "a key inside the backbone": (
        "backbone.heigth=32",
        "backbone.heigth: unknown key; did you mean 'height'; allowed are",
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_bad_recipe(diffaug: Command, tmp_path: Path, case: str) -> None:
    change, expected = RECIPES[case]
    said = diffaug("plan", "fashion_5shot_diffii", "--set", change, "--run", tmp_path / "run")
    assert said.sentence.startswith(expected)
    assert list(tmp_path.iterdir()) == []


FILES = {
    "no file": (None, "no such recipe; `diffaug cp` lists the shipped ones."),
    "no YAML": ("builder: [", "not a readable YAML file"),
    "no mapping": ("- builder", "got list, expected a mapping of recipe keys."),
    "no method": ("builder: fashion", "method: missing; a recipe needs it."),
    "a number as a key": ("1: 2", "keys must be text (got 1); put it in quotes."),
    "nothing": ("", "the file is empty, expected a mapping of recipe keys."),
    "comments alone": ("# mine", "the file is empty, expected a mapping of recipe keys."),
    "a key twice": ("seed: 1\nmethod: genie\nseed: 2", "line 3 has the key 'seed', which line 1 has too; keep one of"),
    "a key inside twice": ("config:\n  a: 1\n  a: 2", "line 3 has the key 'a', which line 2 has too; keep one of them"),
    "aliases": ("a: &a [1]\nb: *a", "line 2 holds the alias *a; write out what it stands for"),
    "tabs": ("config:\n\tratio: 1", "indent with spaces, not tabs"),
    "deep nesting": ("a: " + "[" * 5000, "line 1 is nested more than 50 levels deep"),
    "eleven megabytes": ("#" * 11_000_000, "has more than 10,000,000 bytes; it is not such a file"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_recipe_file(diffaug: Command, tmp_path: Path, case: str) -> None:
    text, expected = FILES[case]
    file = tmp_path / "recipe.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert expected in diffaug("plan", file, "--run", tmp_path / "run").sentence
    assert not (tmp_path / "run").exists()


def test_more_images_than_a_plan_holds(diffaug: Command, tmp_path: Path) -> None:
    """Refused before any row is drawn: ten million take minutes, and more images than anybody makes."""
    line = ("plan", "fashion_full_txt2img", "--set", "include_test=false", "--run", tmp_path / "run")
    begin = time.process_time()
    assert diffaug(*line, "--set", "per_image=10000").sentence == (
        "per_image: got 10,000, which makes 20,000,000 images of 10 classes, expected 10,000,000 at most; lower "
        "per_class or per_image, or plan parts of the classes (targets)."
    )
    assert time.process_time() - begin < 60
    assert list(tmp_path.iterdir()) == []


def test_repeats_without_end(diffaug: Command, tmp_path: Path) -> None:
    line = ("plan", "fashion_999999shot_genie", "--set", "on_small_class=duplicate", "--run", tmp_path / "run")
    assert diffaug(*line).sentence.startswith(
        "protocol: 999999shot with on_small_class: duplicate repeats images 9,997,990 times, expected 1,000,000 at"
    )


SAVED = {
    "with a byte-order mark, CRLF": ("utf-8-sig", "\r\n"),
    "in UTF-16": ("utf-16", "\r\n"),
}


@pytest.mark.parametrize("how", SAVED)
def test_a_recipe_that_windows_saved(diffaug: Command, images: Path, tmp_path: Path, how: str) -> None:
    encoding, end = SAVED[how]
    lines = [
        "builder: imagefolder",
        "source: images",
        "method: img2img",
        "per_class: 1",
        "config:",
        "  prompt: caf\u00e9",
    ]
    (tmp_path / "r.yaml").write_bytes(end.join(lines).encode(encoding))
    assert diffaug("plan", tmp_path / "r.yaml", "--set", "backbone=tiny", "--run", tmp_path / "run").code == 0
    (tmp_path / "r.yaml").write_bytes(end.join(lines).encode("cp1252"))
    assert diffaug("plan", tmp_path / "r.yaml", "--run", tmp_path / "run2").sentence == (
        f"{tmp_path / 'r.yaml'}: not a readable YAML file (line 6 holds the byte 0xe9, which is not UTF-8 "
        "(Windows-1252, Latin-1?); save it as UTF-8)."
    )


def test_python_gets_the_same_sentences(tmp_path: Path) -> None:
    again: dict[str, object] = {}
    again["config"] = again
    for content, expected in (
        ({"per_class": 10**9}, "per_class: got 1000000000, input should be less than or equal to 100000"),
        ({"seed": 10**400}, "seed: got a number of 1329 bits, expected one of 63 at most"),
        ({"per_image": float("inf")}, "per_image: got inf, expected a finite number"),
        ({"config": {"negative_prompt": "a\udcff"}}, "holds the lone surrogate .bytes that are not UTF-8. U.DCFF"),
        ({"config": again}, "config.config.config.config.* is nested more than 50 levels deep"),
    ):
        with pytest.raises(RecipeError, match=expected):
            Recipe.from_dict({"builder": "fashion", "method": "txt2img", **content})


NOT_THERE = ["plan", "cub_5shot_genie", "--source", "birds"]
LINES = {
    "an unknown verb": (["generat"], "No such command 'generat'; did you mean 'generate'? See `diffaug --help`."),
    "no run folder": (["generate"], "Missing argument 'RUN'; see `diffaug generate --help`."),
    "an unknown option": (["plan", "fashion_5shot_genie", "--worker", "2"], "No such option: --worker"),
    "workers below none": (["generate", ".", "--workers", "-1"], "Invalid value for '--workers'"),
    "a device that is none": (["generate", ".", "--device", "gpu"], "--device: got 'gpu', expected auto, cpu, cuda or"),
    "no plan there": (["generate", "."], ".: no plan.json here; `diffaug plan RECIPE --run .` makes a run folder."),
    "a config of no builder": (["plan", "fashon_5shot_genie"], "'fashon_5shot_genie': begins with no builder;"),
    "a config of no method": (["plan", "fashion_5shot_gene"], "'fashion_5shot_gene': ends in no method;"),
    "no such method": (["methods", "gene"], f"method: got 'gene', expected one of {ALLOWED}; did you mean 'genie'?"),
    "no source": (["plan", "imagefolder_full_genie"], "imagefolder: got no source, expected a folder with images"),
    "a source that is not there": (NOT_THERE, "/birds', where no folder is, expected a folder with CUB-200-2011"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_a_bad_command_line(diffaug: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    words, expected = LINES[case]
    monkeypatch.chdir(tmp_path)
    assert expected in diffaug(*words).sentence
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_is_never_overwritten(diffaug: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine", encoding="utf-8")
    said = diffaug("cp", "real_filter", file)
    assert said.sentence == f"{file}: is there already; give another file name, or remove it first."
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_plan_from_another_recipe(diffaug: Command, tmp_path: Path) -> None:
    line = ("plan", "fashion_2shot_genie", *SMALL, "--run", tmp_path / "run")
    assert diffaug(*line).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert diffaug(*line, "--set", "per_class=2").sentence == (
        f"{tmp_path / 'run'}: holds another plan; what differs: recipe.per_class: 1 -> 2. "
        "Use another run folder, or put the recipe back."
    )
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_plan_whose_files_do_not_belong_together(diffaug: Command, tmp_path: Path) -> None:
    for name, method in (("one", "genie"), ("two", "img2img")):
        diffaug("plan", f"fashion_2shot_{method}", *SMALL, "--run", tmp_path / name)
    (tmp_path / "one" / "plan.parquet").write_bytes((tmp_path / "two" / "plan.parquet").read_bytes())
    assert diffaug("generate", tmp_path / "one").sentence == (
        f"{tmp_path / 'one'}: plan.parquet does not belong to plan.json; plan again into another folder."
    )


def test_no_gpu_when_one_is_asked_for(diffaug: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    diffaug("plan", "fashion_2shot_genie", *SMALL, "--run", tmp_path / "run")
    said = diffaug("generate", tmp_path / "run", "--device", "cuda")
    assert said.sentence == f"--device cuda: torch {torch.__version__} sees no GPU here; use --device cpu or auto."


def test_a_row_that_is_not_there(diffaug: Command, tmp_path: Path) -> None:
    diffaug("plan", "fashion_2shot_genie", *SMALL, "--run", tmp_path / "run")
    assert "no row id begins with 'zz'" in diffaug("regen", tmp_path / "run", "zz").sentence
    assert "no row id begins with ''" in diffaug("regen", tmp_path / "run", "").sentence
    from diffaug_datasets import Run

    row = Run.open(tmp_path / "run").plan.rows[0].row_id
    assert diffaug("regen", tmp_path / "run", row).sentence == (
        f"row {row}: not made yet; `diffaug generate {tmp_path / 'run'}` makes it."
    )


MOUNTED = """
set -u
mount -t tmpfs -o size=3m none "$DISK" || exit 77
diffaug() { "$PYTHON" -m diffaug_datasets "$@"; echo "code $?" >&2; }
"""


def own_disk(tmp_path: Path, script: str) -> tuple[list[str], list[str]]:
    """Lines on stdout and stderr of a script that has a small disk of its own at $DISK."""
    disk = tmp_path / "disk"
    disk.mkdir()
    line = ["unshare", "--map-root-user", "--mount", "bash", "-c", MOUNTED + script]
    environment = {"DISK": str(disk), "PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=240, check=False)
    except FileNotFoundError:
        pytest.skip("no `unshare` here, so no disk of our own")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this machine lets us mount no disk of our own ({done.stderr.strip()[-100:]})")
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_a_disk_without_room_for_the_plan(tmp_path: Path) -> None:
    out, err = own_disk(tmp_path, 'diffaug plan fashion_5shot_txt2img --run "$DISK/run"; ls -A "$DISK"')
    assert out == []
    assert err[0].startswith(f"diffaug: {tmp_path / 'disk' / 'run'}: the run needs about ")
    assert err[0].endswith("free space, plan fewer images, or give --run on another disk.")
    assert err[1:] == ["code 2"]


def test_a_disk_that_fills_up_and_a_disk_that_is_read_only(tmp_path: Path) -> None:
    small = " ".join(f"'{word}'" for word in SMALL)
    out, err = own_disk(
        tmp_path,
        f"""
        diffaug plan fashion_2shot_genie {small} --run "$DISK/run"
        dd if=/dev/zero of="$DISK/fill" bs=1k 2>/dev/null
        diffaug generate "$DISK/run" --workers 1
        find "$DISK" -name '*.tmp'
        rm "$DISK/fill"
        diffaug generate "$DISK/run" --workers 1
        diffaug plan fashion_2shot_genie {small} --run "$DISK/half"
        mount -o remount,ro "$DISK"
        diffaug generate "$DISK/run"
        diffaug generate "$DISK/half"
        diffaug plan fashion_2shot_genie {small} --run "$DISK/new"
        diffaug status "$DISK/run"
        """,
    )
    codes = [line for line in err if line.startswith("code ")]
    said = [line for line in err if not line.startswith("code ")]
    assert codes == [f"code {code}" for code in (0, 2, 0, 0, 0, 2, 2, 0)]  # the finished run is only read
    assert len(said) == 3, said
    assert said[0].startswith("diffaug: ") and "No space left on device" in said[0]
    assert (
        said[1] == f"diffaug: {tmp_path / 'disk' / 'half'}: is read-only for this user; a run folder must be writable."
    )
    assert "cannot write" in said[2] and "Read-only file system" in said[2]
    assert any("10 images written, 0 failed" in line for line in out)
    assert not any(line.endswith(".tmp") for line in out)


@pytest.mark.parametrize("verb", ["plan", "cp"])
def test_a_folder_that_may_not_be_written(diffaug: Command, tmp_path: Path, verb: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    line = (
        ("plan", "fashion_2shot_genie", *SMALL, "--run", blocked / "run") if verb == "plan" else ("cp", "real_filter")
    )
    said = diffaug(*line, *(() if verb == "plan" else (blocked / "mine.yaml",)))
    assert str(blocked) in said.sentence and "Not a directory" in said.sentence
