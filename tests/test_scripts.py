"""The scripts that look at a whole device or at real photographs, at the smallest size that runs all of them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffaug_datasets.core.method import discover_methods

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TINY = SCRIPTS.parent / "diffaug_datasets" / "assets" / "tiny" / "pipeline"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts, importable."""
    monkeypatch.syspath_prepend(SCRIPTS)


LEARNED = ["diff_ii"]


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(LEARNED, marks=pytest.mark.full),
        pytest.param(sorted(discover_methods()), marks=[pytest.mark.full, pytest.mark.timeout(900)]),
    ],
)
def test_check_gpu_holds_on_the_cpu(methods: list[str]) -> None:
    """At 64 px in two steps: 1 and 2 processes and a killed one leave the same bytes."""
    command = [sys.executable, str(SCRIPTS / "check_gpu.py"), "--size", "small", "--device", "cpu"]
    command += ["--methods", *methods, "--only", "methods", "--budget", "100000"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=dict(os.environ))
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[0].startswith("device: cpu, ")
    assert lines[1].startswith("python 3.")
    assert "small Stable Diffusion 1.5 shape, random weights, bfloat16; 64 px, 2 steps" in lines[2]
    table = {line.split()[0]: line for line in lines[5:-1]}
    assert sorted(table) == sorted(methods)
    assert all(line.count("equal, ") == 2 for line in table.values())
    assert table["diff_ii"].endswith("equal, 2")
    assert lines[-1].startswith(f"PASS: {len(table)} of {len(table)} methods hold, ")


def test_check_gpu_finds_the_pipeline_of_the_tests(scripts: None, tmp_path: Path) -> None:
    import check_gpu

    folder = check_gpu.build_pipeline(tmp_path / "pipeline", check_gpu.SIZES["small"], "cpu")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_check_gpu_measures_on_the_cpu_too() -> None:
    """A dry run: every measure gives a line of JSON, and what only a GPU has is null."""
    command = [sys.executable, str(SCRIPTS / "check_gpu.py"), "--size", "small", "--device", "cpu", "--only", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {line.pop("measure"): line for line in lines}
    assert len(found) == 9
    assert not any("failed" in line or "left_out" in line for line in found.values())
    assert found["pixels_apart"]["levels_apart_most"] == 0
    assert found["host_syncs"]["host_syncs_a_step"] is None
    assert found["shares"]["share_of_matrix_rate"] > 0


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_check_gpu_plans_the_real_size(scripts: None, tmp_path: Path) -> None:
    import check_gpu

    size = check_gpu.SIZES["full"]
    pipeline = check_gpu.build_pipeline(tmp_path / "pipeline", size, "cpu")
    pictures = check_gpu.draw_pictures(tmp_path / "pictures", size.pixels, range(2))
    bench = check_gpu.Bench(tmp_path, "cpu")
    for name in check_gpu.METHODS:
        bench.plan(check_gpu.recipe(check_gpu.find_method(name), pipeline, pictures, size, "fast"))
        assert (tmp_path / "two" / name / "plan.json").is_file()
    assert 4.16 < bench.planned["txt2img"] < 1.3 * 4.16  # GiB of tensors that it took on an H200


def test_check_gpu_says_what_does_not_hold(
    scripts: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the second process made nothing and no kill hit, the method fails, and so does the script."""
    import check_gpu

    monkeypatch.setattr(check_gpu.Bench, "pair", lambda bench, methods: None)
    monkeypatch.setattr(check_gpu.Bench, "kill_and_resume", lambda bench, name: (bench.finish("killed", name), 0))
    monkeypatch.setattr(
        sys, "argv", ["check_gpu.py", "--size", "small", "--device", "cpu", "--methods", "txt2img", "--only", "methods"]
    )
    with pytest.raises(SystemExit) as stopped:
        check_gpu.main()
    assert stopped.value.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split()[:3] == ["txt2img", "12", "0"]
    assert lines[-2].endswith("DIFFER, 0          equal, 0")
    assert lines[-1].startswith("FAIL: 0 of 1 methods hold")


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Two classes of noise in two colours, one with a hyphen in its name."""
    for number, name in enumerate(("blue-box", "Red_ball")):
        for split, count in (("train", 6), ("test", 2)):
            folder = tmp_path / "toys" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([number, count, i]).integers(0, 255, (40, 36, 3), dtype=np.uint8)
                noise[..., 2 - 2 * number] = 255
                Image.fromarray(noise).save(folder / f"{i}.png")
    return tmp_path / "toys"


NAMES = ["txt2img", "img2img-L", "img2img-H", "genie", "realguidance", "diffii"]


def photos(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    """Runs the script; what it ended with."""
    import bench_photos

    monkeypatch.setattr(sys, "argv", ["bench_photos.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        bench_photos.main()
    return stopped.value.code


def test_bench_photos_names_what_is_not_there(scripts: None, monkeypatch: pytest.MonkeyPatch, toys: Path) -> None:
    assert "nowhere/train: no such folder; give one" in str(photos(monkeypatch, "nowhere"))
    assert "nowhere: no model_index.json; give --model" in str(photos(monkeypatch, toys, "--model", "nowhere"))


@pytest.mark.full
def test_bench_photos_explained_and_written_down(
    scripts: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toys: Path, tmp_path: Path
) -> None:
    import explain_bench
    import write_results

    out = tmp_path / "toys_bench"
    few = ("--steps", 10, "--concept-steps", 2, "--network-steps", 2, "--draws", 2, "--per-class", 1)
    assert photos(monkeypatch, toys, "--model", TINY, "--encoders", "tiny", "--out", out, *few) == 0
    prompts = (out / "photos.yaml").read_text("utf-8")
    assert '"blue-box":"blue box"' in prompts and '"Red_ball":"Red ball"' in prompts
    capsys.readouterr()

    monkeypatch.setattr(sys, "argv", ["explain_bench.py", str(out), "--csv", str(tmp_path / "why.csv")])
    explain_bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == NAMES
    assert (tmp_path / "why.csv").read_text("utf-8").startswith("encoder,line,real,agreement,as benched,confirmed")

    monkeypatch.setattr(write_results, "DOCS", tmp_path / "docs")
    write_results.main([out])
    table = (tmp_path / "docs" / "bench" / "toys_bench-logistic-tiny.csv").read_text("utf-8").splitlines()
    assert table[0].startswith("line,accuracy (95 %),gain over real (95 %)")
    benched = {row["line"]: row for row in csv.DictReader(table)}
    explained = {row["line"]: row for row in csv.DictReader((tmp_path / "why.csv").open(encoding="utf-8"))}
    for name, row in explained.items():  # nothing changed gives the bench's own number
        assert row["as benched"].split()[0] == benched[name]["accuracy (95 %)"].split()[0]
    assert (tmp_path / "docs" / "bench_methods.csv").is_file()


def mutated(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "mutate_parity.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=dict(os.environ))


@pytest.mark.full
def test_the_parity_test_catches_a_planted_fault() -> None:
    done = mutated("--methods", "txt2img", "--kinds", "label")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[:2] == [["method", "as", "it", "is", "label"], ["txt2img", "passes", "caught"]]
    assert done.stdout.endswith("PASS: every fault is caught\n")


def test_every_method_has_a_fault_of_every_kind_and_its_place(scripts: None) -> None:
    import mutate_parity

    assert set(mutate_parity.FAULTS) == {method.SLUG for method in discover_methods().values()}
    for slug, faults in mutate_parity.FAULTS.items():
        assert len(faults) == len(set(faults)) == len(mutate_parity.KINDS)
        for fault in faults:
            text = (SCRIPTS.parent / "diffaug_datasets" / fault.file).read_text(encoding="utf-8")
            assert text.count(fault.old) == 1, (slug, fault)
    for option, planted in mutate_parity.OPTIONS.items():
        assert len({fault for _, fault in planted}) == len(planted)
        for test, fault in planted:
            text = (SCRIPTS.parent / "diffaug_datasets" / fault.file).read_text(encoding="utf-8")
            assert text.count(fault.old) == 1 and fault.old != fault.new, (option, fault)
            assert (SCRIPTS.parent / test.partition("::")[0]).is_file(), (option, test)


def test_every_promise_has_a_fault_with_its_place_and_tests(scripts: None) -> None:
    from mutate_promises import PROMISES

    for promise, (fault, tests) in PROMISES.items():
        text = (SCRIPTS.parent / "diffaug_datasets" / fault.file).read_text(encoding="utf-8")
        assert text.count(fault.old) == 1 and fault.old != fault.new, promise
        assert tests and all((SCRIPTS.parent / test).exists() for test in tests), promise


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_broken_promise_is_caught() -> None:
    command = [sys.executable, str(SCRIPTS / "mutate_promises.py")]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and done.stdout.endswith("PASS: every fault is caught\n"), done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_parity_tests_catch_every_planted_fault(scripts: None) -> None:
    import mutate_parity

    done = mutated()
    assert done.returncode == 0, done.stdout + done.stderr
    options = sum(map(len, mutate_parity.OPTIONS.values()))
    assert done.stdout.count("caught") == 4 * len(discover_methods()) + options + 1


def test_a_fault_that_changes_nothing_is_missed_and_one_without_its_place_is_named(
    scripts: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mutate_parity

    harmless = mutate_parity.Fault(
        "numerics/schedule.py", "uncond + w * (cond - uncond)", "w * (cond - uncond) + uncond"
    )
    faults = {"txt2img": [harmless, harmless._replace(old="no such text")]}
    monkeypatch.setattr(mutate_parity, "FAULTS", faults)
    monkeypatch.setattr(mutate_parity, "verdict", lambda folder, slug, context: [])
    monkeypatch.setattr(sys, "argv", ["mutate_parity.py", "--methods", "txt2img", "--kinds", "sign"])
    with pytest.raises(SystemExit) as stopped:
        mutate_parity.main()
    out = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 1 and out[1].split() == ["txt2img", "passes", "MISSED"] and out[-1] == "FAIL"
    monkeypatch.setattr(sys, "argv", ["mutate_parity.py", "--methods", "txt2img", "--kinds", "step"])
    with pytest.raises(SystemExit, match="'no such text' stands there 0 times, expected once"):
        mutate_parity.main()


def test_the_table_of_methods_is_current(scripts: None) -> None:
    import write_methods

    assert write_methods.FILE.read_text(encoding="utf-8") == write_methods.document()


def test_the_pages_of_model_families_are_current(scripts: None) -> None:
    import write_families

    from diffaug_datasets.core.family import discover_families

    held = {path.name: path.read_text(encoding="utf-8") for path in write_families.FOLDER.glob("*.md")}
    assert held == write_families.pages()
    assert set(write_families.ORDER) == set(discover_families())


def test_the_page_of_the_papers_tables_is_current(scripts: None) -> None:
    import write_reproduction

    assert write_reproduction.FILE.read_text(encoding="utf-8") == write_reproduction.document()


@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.full)])
def test_the_page_of_prices_is_current(scripts: None, is_whole: bool) -> None:
    import write_prices

    held = write_prices.FILE.read_text(encoding="utf-8")
    if is_whole:
        assert held == write_prices.document()
    assert held.startswith(write_prices.HEAD)
    assert [name for name in write_prices.SETS if f"| `{name}` |" not in held] == []
    assert f"{write_prices.line('da_fusion@pascal_4shot')}\n" in held


def test_the_cost_of_a_suite_is_the_formula(scripts: None) -> None:
    from write_reproduction import size_of

    from diffaug_datasets.evaluate.paper_suites import find_benches

    size = size_of(find_benches("diffii_rn50@cub_5shot")["diffii_rn50@cub_5shot"])
    assert (size.draws, size.real, size.made) == (3, 200 * 5, 3 * (6 * 5 + 20) * 1000)
    assert size.steps == 3 * 10 * 128 * 4  # 3 draws, 7 sets and 3 controls, 128 epochs of 4 steps
    few = size_of(find_benches("genie_noise@mini_imagenet_5way1shot")["genie_noise@mini_imagenet_5way1shot"])
    assert (few.real, few.made, few.steps) == (5, 600 * 6 * 5 * 4, 0)
    tail = size_of(find_benches("diffii_lt@cub_lt100")["diffii_lt@cub_lt100"])
    assert (tail.real, tail.made) == (1242, 4 * 5 * 1242)


def test_the_picture_of_the_layers_is_what_the_script_draws(scripts: None) -> None:
    import draw_layers

    assert len(draw_layers.layers()) <= 9
    assert draw_layers.FILE.read_text(encoding="utf-8") == draw_layers.picture()
    packages = {path.parent.name for path in (SCRIPTS.parent / "diffaug_datasets").glob("*/__init__.py")}
    assert {name for layer in draw_layers.layers() for name in layer} == packages | {"plugin"}


@pytest.mark.full
def test_count_frames_follows_a_row_from_main_to_the_published_set() -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / "count_frames.py")], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("from main() to generate: ") and lines[1] == "  cli.main"
    assert "  methods.genie.generate" in lines
    modules = [line.split(":")[0].strip() for line in done.stdout.partition("published set: ")[2].splitlines()]
    assert {"core.plan", "run.worker", "run.shards", "release.provenance"} <= set(modules)
