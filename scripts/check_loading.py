"""Do published sets load in other environments: eagerly, streamed, and offline after that, as Arrow and as Parquet.

    python scripts/check_loading.py PYTHON [PYTHON ...]

Makes a small run, publishes it to a Hub on loopback and loads it with each interpreter's own `datasets`, of which
nothing else is asked; every row's id, label and pixels must be those of the run. Exit status 1 where one is not.
An environment of the oldest release that pyproject.toml allows:

    python -m venv old && old/bin/pip install datasets==4.0.0 pillow
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "release")]

CHILD = """
import hashlib, struct, sys
import datasets, huggingface_hub, pyarrow
mode, name, config = sys.argv[1:]
if mode == "versions":
    named = ((module.__name__, module.__version__) for module in (datasets, huggingface_hub, pyarrow))
    print(f"python {sys.version.split()[0]},", ", ".join(f"{name} {version}" for name, version in named))
    sys.exit()
told = hashlib.sha256()
rows = datasets.load_dataset(name, config, split="train", streaming=mode == "streamed")
names = rows.features["label"].names
for row in rows:
    pixels = struct.pack(">II", *row["image"].size) + row["image"].convert("RGB").tobytes()
    assert hashlib.sha256(pixels).hexdigest() == row["pixel_sha256"], row["row_id"]
    told.update(f"{row['row_id']} {names[row['label']]} {row['pixel_sha256']}".encode())
print(told.hexdigest())
"""
MODES = ("eager", "streamed", "offline")


def ask(python: str, mode: str, words: tuple[str, str], environment: dict[str, str]) -> str:
    """What the child prints, or the last line of its complaint."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if mode == "offline" else {}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    done = subprocess.run(
        [python, "-c", CHILD, mode, *words],
        env={**inherited, **environment, **offline},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]


def expected(folder: Path) -> str:
    """The digest that a child must find, from the run's own shards."""
    import hashlib

    from diffaug_datasets import load

    rows = load(folder)
    names, told = rows.features["label"].names, hashlib.sha256()
    for row in rows.remove_columns("image"):
        told.update(f"{row['row_id']} {names[row['label']]} {row['pixel_sha256']}".encode())
    return told.hexdigest()


def main() -> int:
    """Publish once per format, load with every interpreter in every way."""
    from hub.clients import loopback_hub
    from small_release import made

    from diffaug_datasets.release.contents import PublishOptions
    from diffaug_datasets.release.publishing import publish

    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = made(folder / "run")
        right = expected(run.folder)
        with loopback_hub(folder) as hub:
            publish(run, "org/arrow", PublishOptions(file_format="arrow"))
            publish(run, "org/parquet", PublishOptions(file_format="parquet"))
            for number, python in enumerate(sys.argv[1:]):
                environment = hub.environment(folder / f"home-{number}")
                print(ask(python, "versions", ("", ""), environment))
                for name in ("org/arrow", "org/parquet"):
                    found = {mode: ask(python, mode, (name, run.plan.header.name), environment) for mode in MODES}
                    wrong += sum(answer != right for answer in found.values())
                    told = (f"{mode} {'ok' if answer == right else answer}" for mode, answer in found.items())
                    print(f"  {name}:", ", ".join(told))
    print(f"{'FAIL' if wrong or not sys.argv[1:] else 'PASS'}: {wrong} of {6 * len(sys.argv[1:])} ways differ")
    return int(wrong > 0 or not sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
