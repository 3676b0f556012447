"""The walk from a recipe to the old tag of a published set: it runs, and prints what the page of it says."""

import re
import sys
from pathlib import Path

from command_line import Command

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = re.compile(r"\s+\d+ %, ")
DIFFERS = re.compile(r"\b[0-9a-f]{8,64}\b|\d[\d,.:]*|\b[kMGT]B\b|(?<=CPU worker)s?\b")


def plain(text: str) -> list[str]:
    """Lines without times, ids, sizes, and what tells how far a slow machine is."""
    lines = [line for line in text.strip().splitlines() if not PROGRESS.match(line)]
    return [DIFFERS.sub("#", line).rstrip() for line in lines]


def test_the_walk_prints_what_the_page_says(shell: Command) -> None:
    """A Hub on loopback, an environment with `datasets` and `pillow` alone, everything else the real thing."""
    page = (ROOT / "docs" / "guides" / "walk.md").read_text("utf-8")
    [block] = re.findall(r"^```text\n\$ python scripts/walk\.py\n(.*?)^```$", page, re.M | re.S)
    walked = shell(sys.executable, ROOT / "scripts" / "walk.py")
    assert walked.code == 0, walked
    assert plain(walked.out) == plain(block)
    again, first = map(int, re.findall(r"had to be sent: (\d+), the first time (\d+)", walked.out)[0])
    assert 0 < again < first, "shards that were taken over were sent again"
