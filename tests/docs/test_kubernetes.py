"""The documented Job of Kubernetes: valid by the schema of its API, and its command is one of ours."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command
from jsonschema import Draft202012Validator
from typer.main import get_command

from diffaug_datasets.cli.verbs import app
from diffaug_datasets.run.engines.ranks import POD

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guides" / "kubernetes-job.yaml"
SCHEMA: dict[str, Any] = json.loads(Path(__file__).with_name("data").joinpath("kubernetes_job.json").read_text("utf-8"))
Job = dict[str, Any]


@pytest.fixture
def job() -> Job:
    content: Job = yaml.safe_load(PAGE.read_text(encoding="utf-8"))
    return content


def mistakes(job: Job) -> list[str]:
    """What the API would refuse, and where."""
    Draft202012Validator.check_schema(SCHEMA)
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(job)]


def test_the_job_is_valid(job: Job) -> None:
    assert mistakes(job) == []
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")


FAULTS: list[Callable[[Job], object]] = [
    lambda job: job["spec"].update(completionsMode="Indexed"),
    lambda job: job["spec"].update(parallelism="8"),
    lambda job: job["spec"].pop("template"),
    lambda job: job["spec"]["template"]["spec"].pop("containers"),
    lambda job: job["spec"]["template"]["spec"]["containers"][0].pop("name"),
    lambda job: job["spec"]["template"]["spec"]["containers"][0].update(command="diffaug generate"),
    lambda job: job["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "A", "value": 1}),
    lambda job: job["spec"]["podFailurePolicy"]["rules"][1].pop("action"),
    lambda job: job.update(kind="CronJob"),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_schema_catches_mistakes(job: Job, fault: Callable[[Job], object]) -> None:
    broken = deepcopy(job)
    fault(broken)
    assert mistakes(broken)


def test_what_the_schema_cannot_say(job: Job) -> None:
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed", f"without it pods get no {POD}"
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "podFailurePolicy takes nothing else"
    assert spec["maxFailedIndexes"] < spec["completions"] == spec["parallelism"]
    [container] = spec["template"]["spec"]["containers"]
    [named] = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert named["containerName"] == container["name"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_the_command_is_one_of_ours(job: Job, diffaug: Command) -> None:
    program, verb, run, *options = job["spec"]["template"]["spec"]["containers"][0]["command"]
    known = {name for option in get_command(app).commands[verb].params for name in option.opts}
    assert (program, verb) == ("diffaug", "generate")
    assert run.startswith("s3://")
    assert {option for option in options if option.startswith("-")} <= known
    mistake = job["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    assert diffaug("generate", "no/such/run").code in mistake
