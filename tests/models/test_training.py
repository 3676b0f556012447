"""Two processes that share every batch: real accelerate, gloo over loopback, against one process with whole batches."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from test_concepts import CFG, EXAMPLES, NAMES
from torch import Tensor

from diffaug_datasets.core.errors import BackboneError
from diffaug_datasets.models.backbone import Backbone
from diffaug_datasets.models.concepts import train_concepts
from diffaug_datasets.models.training import ALONE, Processes, StepDraws, Team, broadcast, total

SHARED = CFG.model_copy(update={"steps": 4, "batch": 3, "tokens_per_class": 1})  # 3 = 1 + 2


def learn(backbone: Backbone, folder: Path, team: Team = ALONE, die_at: int = 0) -> list[float]:
    """Train into a folder; the losses. Process 0 saves what was learned."""

    def progress(step: int, total: int, loss: float) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    learned = train_concepts(backbone, EXAMPLES, NAMES, SHARED, workdir=folder, team=team, progress=progress)
    learned.concepts.save(folder / f"learned-{team.rank}")
    return list(learned.losses)


def _member(rank: int, port: int, backbone: Backbone, folder: Path, die_at: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    AcceleratorState._reset_state(reset_partial_state=True)  # what the process that forked may have begun alone
    team = Processes("cpu")
    assert (team.rank, team.size) == (rank, 2)
    assert (broadcast(team, 7 + rank), total(team, 2**25 + rank)) == (7, 2**26 + 1)
    losses = learn(backbone, folder, team, die_at)
    torch.save(losses, folder / f"losses-{rank}")
    team.close()
    os._exit(0)


def learn_as_two(backbone: Backbone, folder: Path, die_at: Sequence[int] = (0, 0)) -> list[int | None]:
    """The exit codes of two processes."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    members = [fork.Process(target=_member, args=(rank, port, backbone, folder, die_at[rank])) for rank in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join(120)
    return [member.exitcode for member in members]


def saved(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(_loaded: Backbone, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process."""
    losses = learn(_loaded, tmp_path_factory.mktemp("alone"))
    assert len({round(loss, 3) for loss in losses}) == 4
    return losses


def test_two_processes_at_part_of_a_batch_are_one_at_the_whole(
    backbone: Backbone, alone: list[float], tmp_path: Path
) -> None:
    assert learn_as_two(backbone, tmp_path) == [0, 0]
    losses = [torch.load(tmp_path / f"losses-{rank}") for rank in range(2)]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(alone, abs=1e-5)
    assert saved(tmp_path / "learned-0") == saved(tmp_path / "learned-1")
    assert len(list((tmp_path / "concept-checkpoint").iterdir())) == 1


@pytest.mark.full
def test_two_of_which_one_is_killed_go_on_to_the_same_bytes(backbone: Backbone, tmp_path: Path) -> None:
    together, killed = tmp_path / "together", tmp_path / "killed"
    assert learn_as_two(backbone, together) == [0, 0]
    codes = learn_as_two(backbone, killed, die_at=(0, 3))
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None)  # the other one notices and stops too
    assert not (killed / "learned-0").exists()
    [checkpoint] = (killed / "concept-checkpoint").iterdir()
    assert len(load_file(checkpoint)["losses"]) == 2
    assert learn_as_two(backbone, killed) == [0, 0]
    assert saved(killed / "learned-0") == saved(together / "learned-0")
    assert torch.load(killed / "losses-0") == torch.load(together / "losses-0")


class Half:
    """A process of two whose other half never answers: nothing is added up."""

    rank, size = 1, 2

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing."""


def test_without_the_sum_the_losses_differ(backbone: Backbone, alone: list[float], tmp_path: Path) -> None:
    half = learn(backbone, tmp_path, Half())
    assert max(abs(a - b) for a, b in zip(alone, half, strict=True)) > 1e-2
    assert not (tmp_path / "concept-checkpoint").exists()  # process 0 alone keeps one


def test_a_batch_smaller_than_the_team_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    few = SHARED.model_copy(update={"batch": 1})
    with pytest.raises(BackboneError, match=r"concepts\.batch: 1 images cannot be shared by 2 processes; use fewer\."):
        train_concepts(backbone, EXAMPLES, NAMES, few, workdir=tmp_path, team=Half())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_of_a_draw_are_the_whole(size: int) -> None:
    draw = StepDraws(CFG.model_copy(update={"batch": 5}), (0,) * 7, (1, 2, 2), 1000).step(3)
    parts = [draw.part(number, size) for number in range(size)]
    assert tuple(t for part in parts for t in part.t) == draw.t
    for name in ("images", "mirrored", "eps", "prompts"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(draw, name))
    assert {len(part.t) for part in parts} <= {5 // size, 5 // size + 1}
