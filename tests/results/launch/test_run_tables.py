"""`python -m results run` on tables of tiny runs, through submitit's local executor and a stand-in for Slurm."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from results.__main__ import main
from results.launch.plan import read_plan

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("tiny_run.py")
HEAD = f"""\
paper: tiny
protocol: cil-tiny-2x5
metrics: [acc]
seeds: [0]
command: python {SCRIPT} NAME {{seed}}
rows:
"""


def row(method: str, more: str = "") -> str:
    command = f"command: 'python {SCRIPT} {method} {{seed}}'"
    return f"  - {{method: {method}, folder: '{method}-{{seed}}', {command}{more}}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, whose jobs import the project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def run(*arguments: str) -> int:
    try:
        main(["run", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def launcher(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "results", "run", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, **pipes, start_new_session=True)


def wait_for(happened: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def in_second_task(run: Path) -> bool:
    """Whether the run has saved within its second task: after its first record."""
    record, state = run / "record.jsonl", run / "state.pth"
    return record.exists() and state.exists() and state.stat().st_mtime_ns > record.stat().st_mtime_ns


def states(text: str) -> dict[str, str]:
    """method -> state in the last status table."""
    _, *lines = text[text.rindex("row  ") :].split("\n\n")[0].splitlines()
    return {line.split()[0]: line.split()[2] for line in lines if not line.startswith("Stopped")}


# Failures


def test_rows_are_run_retried_reported_and_skipped(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "t.yaml").write_text(HEAD + row("good") + row("flaky") + row("broken"))
    assert run("t.yaml", "--dry-run") == 0
    before = capsys.readouterr().out
    assert before.count(": missing, 0 of 2 tasks, hours unknown") == 3 and not (folder / "runs").exists()

    assert run("t.yaml", "--jobs", "2", "--", "--threads", "1") == 1
    said = capsys.readouterr().out
    assert states(said) == {"good": "done", "flaky": "done", "broken": "failed"}
    assert "good, seed 0: started\n" in said and "good, seed 0: done; acc 80.00" in said
    assert "flaky, seed 0: failed with exit code 1, after 0 tasks; see runs/tables/t/logs/02-flaky-seed0.log" in said
    assert "flaky, seed 0: started, second try" in said and "broken, seed 0: failed with exit code 1 again" in said
    assert said.count("    the weights are missing") == 2  # both tries are in the log, whose end is shown
    assert "python -m results --protocol cil-tiny-2x5 --runs flaky-0 good-0" in said
    log = (folder / "runs/tables/t/logs/01-good-seed0.log").read_text()
    assert "tiny_run.py good 0 --threads 1" in log and f"devices: {os.environ.get('CUDA_VISIBLE_DEVICES')}" in log

    written = (folder / "good-0/record.jsonl").read_bytes()
    assert run("t.yaml", "--dry-run") == 0  # 2 tasks of 36 s, as the good row's own run measured
    after = capsys.readouterr().out
    assert re.search(r"good, seed 0: done\n", after) and "broken, seed 0: missing, 0 of 2 tasks, hours unknown" in after
    assert run("t.yaml", "--seeds", "0,1", "--dry-run") == 0
    assert "good, seed 1: missing, 0 of 2 tasks, 1.2 min (training, as measured in 1 equal run on" in (
        capsys.readouterr().out
    )
    assert run("t.yaml") == 1
    again = capsys.readouterr().out
    assert "3 runs, 2 done already" in again and "good, seed 0: started" not in again
    assert (folder / "good-0/record.jsonl").read_bytes() == written


def test_rows_of_other_backbones_are_told_apart(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "t.yaml").write_text(HEAD + row("good", ", backbone: none"))
    assert run("t.yaml") == 0
    assert "good, none, seed 0: done; acc 80.00" in capsys.readouterr().out

    (folder / "u.yaml").write_text(HEAD + row("good", ", backbone: none") + row("good", ", backbone: RN50"))
    assert run("u.yaml", "--seeds", "1", "--runs", "good-0", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "good, none, cil-tiny-2x5, seed 1: missing, 0 of 2 tasks, 1.2 min (training, as measured" in said
    assert "good, RN50, cil-tiny-2x5, seed 1: missing, 0 of 2 tasks, hours unknown" in said
    assert run("u.yaml", "--seeds", "1", "--status") == 0
    assert "\ngood, none  1 " in (said := capsys.readouterr().out) and "\ngood, RN50  1 " in said


# Interruptions


def test_a_killed_and_an_interrupted_launcher_are_taken_up(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "t.yaml").write_text(HEAD + row("slow"))
    first = launcher("t.yaml", "--devices", "7")
    wait_for(lambda: in_second_task(folder / "slow-0"), "the second task")
    assert run("t.yaml") == 2
    assert f"another launcher (process {first.pid}) works on this table" in capsys.readouterr().err
    assert run("t.yaml", "--status") == 0
    assert states(capsys.readouterr().out) == {"slow": "running"}

    first.send_signal(signal.SIGKILL)
    first.wait()
    lock = folder / "runs/tables/t/locks/01-slow-seed0"
    process = int(lock.read_text())
    os.kill(process, 0)  # the run goes on
    second = launcher("t.yaml", "--devices", "7")
    wait_for(lambda: "still running" in second.stdout.readline(), "the launcher to find the run")
    assert int(lock.read_text()) == process  # and was not started a second time
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 130 and "each run saves first: slow, seed 0" in said
    assert "The same command goes on from there" in said and states(said) == {"slow": "partial"}
    log = folder / "runs/tables/t/logs/01-slow-seed0.log"
    assert "Stopped in task 2 after step" in log.read_text() and "devices: 7" in log.read_text()

    (folder / "go").touch()
    third = launcher("t.yaml")
    wait_for(lambda: "started" in third.stdout.readline(), "the start")
    said, _ = third.communicate(timeout=60)
    assert third.returncode == 0 and states(said) == {"slow": "done"}
    lines = [json.loads(line) for line in (folder / "slow-0/record.jsonl").read_text().splitlines()]
    assert [(line["metric"], line["after_task"]) for line in lines] == [
        ("train_seconds", 1), ("acc", 1), ("train_seconds", 2), ("acc", 2),
    ]  # fmt: skip
    assert log.read_text().count("tiny_run.py slow 0") == 2


def test_ctrl_c_stops_what_this_launcher_started(folder: Path) -> None:
    (folder / "t.yaml").write_text(HEAD + row("slow") + row("good"))
    started = launcher("t.yaml")
    wait_for(lambda: in_second_task(folder / "slow-0"), "the second task")
    os.killpg(started.pid, signal.SIGINT)  # as a terminal sends it: to the launcher's whole group
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 130 and states(said) == {"slow": "partial", "good": "missing"}
    log = (folder / "runs/tables/t/logs/01-slow-seed0.log").read_text()
    assert "all of it is saved in slow-0" in log and "Traceback" not in log


# Slurm

SHIMS = {  # a job runs in the background; srun drops its own options and tells its process
    "sbatch": 'echo "Submitted batch job 77"; cp "$1" sbatch.txt; scontrol requeue 77',
    "scontrol": "SLURM_JOB_ID=$2 nohup bash sbatch.txt > /dev/null 2>&1 &",
    "srun": "while [[ $1 == --* ]]; do case $1 in --output|--error) shift 2 ;; *) shift ;; esac; done\n"
    'echo $$ > srun.pid; exec "$@"',
    "sacct": 'printf "JobID|State|NodeList\\n77|RUNNING|n1\\n"',
    "scancel": "exit 0",
}


def test_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Submitted with the options given; warned that its time is up, the job saves, is queued again, and ends."""
    (folder / "t.yaml").write_text(HEAD + row("slow"))
    slurm = ["--executor", "slurm", "--slurm-time", "1-02:30:00", "--slurm-partition", "gpu", "--slurm", "account=lab"]
    slurm += ["--slurm", "qos=long", "cpus-per-task=3"]
    assert run("t.yaml", *slurm) == 2
    assert "sbatch, srun, sacct, scancel not found" in capsys.readouterr().err
    (folder / "bin").mkdir()
    for name, text in SHIMS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    started = launcher("t.yaml", *slurm)
    wait_for(lambda: in_second_task(folder / "slow-0"), "the second task")
    (folder / "go").touch()
    job = int((folder / "srun.pid").read_text())
    command = int(Path(f"/proc/{job}/task/{job}/children").read_text())
    for process in (command, job):  # Slurm signals all of a job
        os.kill(process, signal.SIGUSR2)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 0 and "slow, seed 0: submitted\n" in said and states(said) == {"slow": "done"}
    log = (folder / "runs/tables/t/logs/01-slow-seed0.log").read_text()
    assert log.count("tiny_run.py slow 0") == 2 and log.count("Stopped in task 2 after step") == 1
    script = (folder / "sbatch.txt").read_text()
    given = ("--time=1590", "--partition=gpu", "--account=lab", "--qos=long", "--cpus-per-task=3")
    for option in (*given, "--gpus-per-node=1", "--signal=USR2@90"):
        assert f"#SBATCH {option}\n" in script
    assert json.loads((folder / "runs/tables/t/jobs.json").read_text())["01-slow-seed0"]["job"] == "77"


# Mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: [", "t.yaml: no YAML (while parsing"),
        ("title: x", "t.yaml: a list under `rows` is expected"),
        (HEAD + row("a", ", sedes: [1]"), "t.yaml: rows[0] (a): unknown key sedes. Did you mean seeds?"),
        (HEAD + row("a") + row("b", ", seeds: 3"), "rows[1] (b): seeds: a list is expected, not 3"),
        (HEAD + row("a", ", seeds: [x]"), "rows[0] (a): seeds: a list of whole numbers is expected, not ['x']"),
        (HEAD + row("a", ", protocol: my-own"), "protocol my-own: its name does not tell the number of tasks"),
        (HEAD + "  - {method: a}\n", "rows[0] (a): missing folder"),
        (HEAD + "  - {method: a, folder: x, seeds: [0, 1]}\n", "folder lacks {seed}"),
        (HEAD + row("a", ", mini_folder: '{sede}'"), "mini_folder holds {sede}; only {seed} is filled in"),
        ("rows: absent.yaml", "absent.yaml: not found; `rows` is a list of rows, or a file beside the plan."),
        ("rows: t.yaml", "t.yaml: a list under `rows` is expected"),
    ],
)
def test_broken_plans(folder: Path, text: str, message: str, capsys: pytest.CaptureFixture) -> None:
    (folder / "t.yaml").write_text(text)
    assert run("t.yaml", "--dry-run") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zscl-mtil-order3"], "no table zscl-mtil-order3. Did you mean zscl-mtil-order"),
        (["zscl-mtil-order1"], "not here: zscl/scripts/WiSE_finetune.sh, "),
        (["zscl-mtil-order1", "--seeds", "1"], "Fine-tuning: folder lacks {seed}: it is for the seed 42 alone"),
        (["zscl-mtil-order1", "--", "--save", "x"], "--save behind --"),
        (["zscl-mtil-order1", "--slurm-time", "1"], "--slurm-time goes with --executor slurm"),
        (["zscl-mtil-order1", "--slurm-time", "1 day"], "--slurm-time 1 day: give minutes, hours"),
        (["zscl-mtil-order1", "--slurm", "lab"], "--slurm lab: give KEY=VALUE"),
        (["zscl-mtil-order1", "--jobs", "0"], "--jobs 0: give 1 or more"),
        (["zscl-mtil-order1", "--seeds", "0,0"], "--seeds 0 0: a value occurs twice"),
        (["zscl-mtil-order1", "--seeds", "-1"], "--seeds -1: give 0 or more"),
        (["zscl-mtil-order1", "--seeds", "0,x"], "--seeds 0,x: a whole number, or a list of such, is expected"),
        (["zscl-mtil-order1", "--dry-run", "--tflops", "0"], "--tflops 0.0: give more than 0"),
        (["zscl-mtil-order1", "--dry-run", "--tflops", "inf"], "--tflops inf: give more than 0"),
        (["zscl-mtil-order1", "--dry-run", "--status"], "give one of them"),
        (["zscl-mtil-order1", "--devices", ","], "--devices: it is empty"),
        (["zscl-mtil-order1", "--executor", "slurm", "--devices", "0"], "Slurm gives each job its own"),
    ],
)
def test_mistakes(folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err and not (folder / "runs").exists()


def test_rows_that_tables_share(folder: Path) -> None:
    text = "{method: a, command: 'go {dataset} {seed}', folder: {tiny: 'at/{dataset}', big: b}, petaflops: {big: 1, tiny: 2}}"
    (folder / "shared.yaml").write_text(f"- {text}")
    (folder / "t.yaml").write_text(f"{HEAD.rstrip()} shared.yaml")
    (only,) = read_plan("t.yaml").rows
    assert (only.command, only.folder, only.petaflops) == ("go tiny {seed}", "at/tiny", 2)


def test_counted_costs(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "t.yaml").write_text(HEAD + row("a", ", petaflops: 36") + row("b"))
    assert run("t.yaml", "--dry-run", "--tflops", "10") == 0  # 36e15 / 10e12 = 3600 s
    said = capsys.readouterr().out
    assert "a, seed 0: missing, 0 of 2 tasks, 1.0 h (36 PFLOP counted, at 10 TFLOP/s)" in said
    assert "2 runs, 2 not done: about 1.0 h of one device, and 1 of unknown cost" in said
    assert run("t.yaml", "--dry-run") == 0
    assert "hours unknown (36 PFLOP counted; give --tflops, the rate of your device)" in capsys.readouterr().out
