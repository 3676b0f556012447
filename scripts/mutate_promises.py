"""Do the tests catch a broken promise: one planted fault for each thing that a person relies on.

    python scripts/mutate_promises.py [WORD ...]        those faults whose names hold one of the words

Copies the package and its tests into a temporary folder, checks that the named tests pass there, then plants one fault
after the other and runs its tests. Prints a line per fault; the exit status is 1 where one is missed, or where its
place is no longer in the source.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mutate_parity import ENVIRONMENT, Fault, copy_package, plant

RUN, PUSH = "tests/run/test_store.py", "tests/release/test_targets.py"
VERIFY, STACKS, PRICE = "tests/release/test_verify.py", "tests/run/test_stacks.py", "tests/planning/test_price.py"

PROMISES: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "a run of another stack is refused": (
        Fault("run/worker.py", "        if others:\n            probes", "        if not others:\n            probes"),
        (STACKS,),
    ),
    "verify compares recipe.yaml with the plan": (
        Fault("release/verify.py", "in planned if stated.get(key) != planned[key]]", "in planned if key is None]"),
        (VERIFY, "tests/release/test_verify_statements.py"),
    ),
    "a file of other bytes is pushed again": (
        Fault(
            "release/targets.py",
            "there.get(item.path) not in self._digests[item.path]",
            "item.path not in there",
        ),
        (PUSH, "tests/release/test_targets_retry.py"),
    ),
    "a closed pull request is not used again": (
        Fault(
            "release/targets.py", 'request.status in ("open", "draft")', 'request.status in ("open", "draft", "closed")'
        ),
        (PUSH, "tests/release/test_targets_retry.py"),
    ),
    "a sample is spread over the plan": (
        Fault("release/rebuild.py", "ids[place * len(ids) // count]", "ids[0 * place]"),
        (VERIFY,),
    ),
    "a set without a kept row does not go out": (
        Fault("release/publishing.py", "if not any(count.kept for", "if None in (count.kept for"),
        ("tests/release/test_publishing.py",),
    ),
    "failed rows are not kept ones": (
        Fault("run/assembly.py", "kept=planned[i] - lost[i] - out[i]", "kept=planned[i] - out[i]"),
        (RUN,),
    ),
    "a run of two stacks says so": (
        Fault("run/assembly.py", 'tier="T0" if len(stacks) == 1 else "T2"', 'tier="T0"'),
        (STACKS, "tests/run/test_batch_faults.py", "tests/release/test_verify_statements.py"),
    ),
    "run.json of another plan is none": (
        Fault("run/assembly.py", "return assembled if assembled.plan_id == run.plan.id else None", "return assembled"),
        (RUN,),
    ),
    "run.json is compared with what lies there": (
        Fault(
            "run/assembly.py",
            "    shards = [run.receipt(shard.name) for shard in (*run.plan.real_shards(), *run.plan.shards())]\n",
            "    return done\n    shards = []\n",
        ),
        (RUN,),
    ),
    "a failure budget is met at its edge": (
        Fault("run/execute.py", "if failed <= Fraction(", "if failed < Fraction("),
        (RUN,),
    ),
    "halves of an odd batch hold every row": (
        Fault("run/batch.py", "half = (len(part) + 1) // 2", "half = len(part) // 2"),
        (STACKS,),
    ),
    "fits take time": (
        Fault("run/worker.py", '"seconds": round(time.perf_counter() - begin, 3)', '"seconds": 0.0'),
        (RUN,),
    ),
    "confusion counts as it stands": (
        Fault(
            "planning/confusion.py",
            "score = {c: matrix[target][c] + matrix[c][target]",
            "score = {c: matrix[target][c] / max(matrix[target]) + matrix[c][target] / max(matrix[c])",
        ),
        ("tests/planning/test_confusion.py",),
    ),
    "filters write rows twice": (
        Fault("planning/price.py", "kept_twice = 2 if recipe.filters else 1", "kept_twice = 1"),
        (PRICE,),
    ),
    "too little memory is said": (
        Fault("planning/price.py", "*_memory_warnings(of_worker * workers, to_plan)", "*()"),
        (PRICE,),
    ),
    "a plan that fails leaves no folder": (
        Fault("planning/prepare.py", "            shutil.rmtree(folder, ignore_errors=True)\n", "            pass\n"),
        (RUN,),
    ),
}


def run_tests(folder: Path, tests: tuple[str, ...]) -> int:
    """pytest's exit code of these tests in the copy: 0 where they pass, 1 where one fails."""
    places = os.pathsep.join(map(str, (folder, folder / "tests")))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": places, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    return done.returncode


def main(words: list[str]) -> None:
    """Copy, plant, print."""
    chosen = {name: told for name, told in PROMISES.items() if not words or any(word in name for word in words)}
    if not chosen:
        raise SystemExit(f"no promise holds {' or '.join(words)}; known are: {'; '.join(PROMISES)}.")
    with tempfile.TemporaryDirectory() as name:
        folder = copy_package(Path(name).resolve())
        tests = tuple(dict.fromkeys(test for _, named in chosen.values() for test in named))
        if run_tests(folder, tests):
            raise SystemExit(f"the tests fail without a fault: {' '.join(tests)}")
        held = True
        for promise, (fault, named) in chosen.items():
            before = plant(folder, fault)
            code = run_tests(folder, named)
            (folder / "diffaug_datasets" / fault.file).write_text(before, encoding="utf-8")
            print(f"{promise:<45} {'caught' if code == 1 else 'MISSED' if code == 0 else f'pytest ended with {code}'}")
            held = held and code == 1
    print("PASS: every fault is caught" if held else "FAIL")
    raise SystemExit(not held)


if __name__ == "__main__":
    main(sys.argv[1:])
