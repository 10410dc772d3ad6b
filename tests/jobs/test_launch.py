"""The files that start trainers on clusters: what a machine without a cluster can check of them."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "jobs" / "launch"
SLURM = LAUNCH / "slurm.sh"


def test_every_file_explains_itself_in_five_lines_or_so():
    files = {path.name for path in LAUNCH.iterdir()}
    assert files == {"slurm.sh", "jobset.yaml", "skypilot.yaml", "Dockerfile"}
    for name in files:
        lines = (LAUNCH / name).read_text().removeprefix("#!/usr/bin/env bash\n").splitlines()
        comments = next(index for index, line in enumerate(lines) if not line.startswith("# ") and line != "#")
        assert 5 <= comments <= 8, name


def test_the_slurm_script_is_sound():
    subprocess.run(["bash", "-n", SLURM], check=True)
    subprocess.run([shutil.which("shellcheck") or ROOT / ".venv/bin/shellcheck", "-S", "warning", SLURM], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SLURM.read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # one task a GPU, as JAX expects
    assert options["signal"].startswith("B:USR1@") and "requeue" in options


@pytest.fixture
def slurm(tmp_path):
    """Starts the script with commands of Slurm that note how they were called; srun runs `task`."""

    def start(task):
        fakes = {
            "srun": f'echo "$@" > {tmp_path}/srun; echo $$ > {tmp_path}/task; {task}',
            "scancel": f'echo "$@" > {tmp_path}/scancel; kill -TERM $(cat {tmp_path}/task)',
            "scontrol": f'echo "$@" > {tmp_path}/scontrol',
        }
        (tmp_path / "bin").mkdir()
        for name, body in fakes.items():
            (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
        environment["SLURM_CPUS_PER_TASK"] = "8"
        return subprocess.Popen([SLURM, "--config", "a b.py"], env=environment)

    return start


def noted(tmp_path, name):
    return (tmp_path / name).read_text().strip() if (tmp_path / name).exists() else None


def test_a_finished_slurm_job_is_not_queued_again(slurm, tmp_path):
    assert slurm("exit 0").wait(10) == 0
    assert noted(tmp_path, "srun").split() == [
        *("--cpus-per-task=8", "--kill-on-bad-exit=0", ".venv/bin/python", "jobs/train.py"),
        *("--stopped_exit_code=75", "--config", "a", "b.py"),
    ]
    assert noted(tmp_path, "scontrol") is None


def test_a_failed_slurm_job_keeps_its_exit_code(slurm, tmp_path):
    assert slurm("exit 3").wait(10) == 3
    assert noted(tmp_path, "scontrol") is None


def test_a_slurm_job_that_was_preempted_is_queued_again(slurm, tmp_path):
    assert slurm("exit 75").wait(10) == 75  # the tasks had the signal, the script did not
    assert noted(tmp_path, "scancel") is None
    assert noted(tmp_path, "scontrol") == "requeue 42"


@pytest.mark.parametrize(("code", "requeued"), [(75, "requeue 42"), (0, None), (5, None)])
def test_near_the_limit_a_slurm_job_saves_and_is_queued_again(slurm, tmp_path, code, requeued):
    job = slurm(f"trap 'sleep 0.3; touch {tmp_path}/saved; exit {code}' TERM; while true; do sleep 0.05; done")
    while not noted(tmp_path, "task"):
        time.sleep(0.02)
    time.sleep(0.5)  # until it traps
    job.send_signal(10)
    assert job.wait(10) == code
    assert noted(tmp_path, "scancel") == "--signal=TERM 42"
    assert (tmp_path / "saved").exists()  # it was waited for
    assert noted(tmp_path, "scontrol") == requeued


def test_the_jobset_is_valid():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"].keys() == {"failurePolicy", "replicatedJobs"}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": jobset["metadata"], **replicated["template"]}
    kubernetes_validate.validate(job, "1.34", strict=True)

    spec = replicated["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert int(environment["JAX_NUM_PROCESSES"]) == spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed"  # which sets JOB_COMPLETION_INDEX
    # JobSet's name of a pod: <set>-<job>-<replica>-<index>.<set>
    host, port = environment["JAX_COORDINATOR_ADDRESS"].split(":")
    name = jobset["metadata"]["name"]
    assert host == f"{name}-{replicated['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    arguments = dict(argument.removeprefix("--").split("=") for argument in container["args"])
    assert (ROOT / arguments["config"]).is_file()
    # A pod that was evicted and ends with 0 has succeeded for Kubernetes, and nothing would start again.
    assert 0 < int(arguments["stopped_exit_code"]) < 128 and spec["backoffLimit"] == 0


def test_the_skypilot_task_is_sound():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task.keys() == {"name", "num_nodes", "resources", "workdir", "file_mounts", "setup", "run"}
    for script in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[script], text=True, check=True)
        command = [shutil.which("shellcheck") or str(ROOT / ".venv/bin/shellcheck"), "-s", "bash", "-"]
        subprocess.run(command, input=task[script], text=True, check=True)
    assert (ROOT / re.search(r"--config (\S+)", task["run"])[1]).is_file()
    stopped = re.search(r"--stopped_exit_code (\d+)", task["run"])[1]
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": int(stopped)}
    assert re.search(r"--workdir (/\w+)", task["run"])[1] in task["file_mounts"]


def test_flags_and_variables_are_those_the_trainer_reads():
    trainer, processes = ((ROOT / "jobs" / name).read_text() for name in ("train.py", "training/processes.py"))
    files = "".join(path.read_text() for path in LAUNCH.iterdir())
    for flag in set(re.findall(r"--(coordinator|num_processes|process_id|stopped_exit_code)", files)):
        assert re.search(rf'DEFINE_\w+\(\s*"{flag}"', trainer)
    for variable in set(re.findall(r"J(?:AX|OB)_[A-Z_]+", (LAUNCH / "jobset.yaml").read_text())):
        assert f'"{variable}"' in processes


def test_the_image_copies_what_exists_and_ends_without_rights():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    instructions = [line.split() for line in lines if line and not line.startswith("#")]
    assert {words[0] for words in instructions} == {
        *("FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "STOPSIGNAL", "ENTRYPOINT")
    }
    ignored = set((ROOT / ".dockerignore").read_text().split())
    copied = [word for words in instructions if words[0] == "COPY" for word in words[1:-1] if word[0] != "-"]
    assert {"requirements.txt", "pyproject.toml", "configs", "jobs", "model"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists() and source not in ignored
    assert re.fullmatch(r"python:3\.11[\w.-]+", instructions[0][1])
    users = [words[1] for words in instructions if words[0] == "USER"]
    assert users == ["user"]
    assert instructions[-1][0] == "ENTRYPOINT" and instructions[-1][1].startswith("[")
    jax = next(words[1] for words in instructions if words[0] == "ARG")
    pinned = re.search(r"^jax==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert jax.endswith(f"=={pinned}")
    assert f"jax[cuda13]=={pinned}" in (LAUNCH / "skypilot.yaml").read_text()
