"""Running the jobs of a table through submitit: on this machine a few at a time, or on Slurm.

    runs/tables/<table>/jobs.json   the job that was last started for each row and seed
    runs/tables/<table>/logs/       what each command said, all its tries in one file
    runs/tables/<table>/submitit/   submitit's own files

A local job holds its lock file from before its command starts until the command has ended, and its lock file names the
command's process. So the launcher after one that was killed knows what still runs, waits for it or stops it, and never
starts a run twice.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from common.errors import Interrupted, UserError
from common.files import held_lock, write_text
from results.launch.plan import Job
from results.launch.progress import DONE, progress

POLL = 0.2  # seconds between two looks at the jobs
TRIES = 2
LOG_LINES = 15  # of a failed command
YEAR = 365 * 24 * 60  # minutes; a local job has no time limit
TIMEOUTS = 1000  # on Slurm a job whose time is up is queued again, as often as it takes


@dataclass(frozen=True)
class Cluster:
    """Where jobs run: submitit's cluster, a slot for each job at a time, submitit's parameters.

    A slot is the job's CUDA_VISIBLE_DEVICES, None for this process's.
    """

    name: str  # "local" or "slurm"
    slots: list[str | None]
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Running:
    """A job that was started, by this launcher or by an earlier one, whose local jobs have no handle."""

    job: Job
    handle: submitit.Job | None
    slot: str | None
    lock: Path
    signalled: int | None = None  # the process that got SIGTERM: a second one would cost what it wants to save

    def ended(self) -> bool:
        """Whether neither submitit nor the lock file knows it as running."""
        return (self.handle is None or self.handle.done()) and not is_busy(self.lock)

    def stop(self) -> None:
        """Send SIGTERM to a local run once, so that it saves; call it until `ended`, as a job may just be starting."""
        process = int((is_busy(self.lock) and self.lock.read_text()) or 0)
        if process and process != self.signalled:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
            self.signalled = process


@dataclass
class Command:
    """What submitit calls: runs the words as a process that writes to `log`, and returns its exit code.

    `lock` is None on Slurm, which signals every process of a job itself. `environment` overrides variables; None
    removes one.
    """

    words: tuple[str, ...]
    log: Path
    lock: Path | None
    environment: dict[str, str | None]
    process: subprocess.Popen | None = field(default=None, init=False)

    def __call__(self) -> int:
        if self.lock is None:
            return self._run()
        import fcntl  # Windows lacks it: there jobs can be listed, not run

        with open(self.lock, "r+") as lock:
            with suppress(OSError):  # a file system without locks, of which the launcher's own has warned
                fcntl.flock(lock, fcntl.LOCK_EX)  # waits for the run of a launcher that was killed in between
            lock.truncate(0)
            return self._run(lock)

    def _run(self, lock: Any = None) -> int:
        variables: dict[str, str | None] = {"PYTHON": sys.executable, **os.environ, **self.environment}
        environment = {name: value for name, value in variables.items() if value is not None}
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning is for this process; see checkpoint
        with open(self.log, "ab") as log:
            log.write(f"\n=== {time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(self.words)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [environment["PYTHON"] if self.words[0] == "python" else self.words[0], *self.words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=lock is not None,  # away from the terminal's Ctrl-C, which the launcher hears
                pass_fds=[lock.fileno()] if lock else [],  # the lock lives as long as the command
            )
        signal.signal(signal.SIGUSR2, before)
        if lock:
            lock.write(str(self.process.pid))
            lock.flush()
        else:  # Popen.wait holds a lock that `checkpoint`, called by a signal's handler, would wait for
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        code = self.process.wait()
        if lock:
            lock.truncate(0)
        return code

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit on Slurm before the job's time is up or another takes its place: save, queue again."""
        if self.process:
            self.process.terminate()
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self))


def is_busy(lock: Path) -> bool:
    """Whether a process holds this lock file."""
    if not lock.exists():
        return False
    import fcntl

    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)  # others: a file system without locks
    return False


def only_launcher(folder: Path) -> ExitStack:
    """The lock of this process on a table's folder, made if it is not there: a table has one launcher at a time.

    Raises UserError while another launcher works on it.
    """
    pid = folder / "launcher.pid"
    try:
        for part in ("logs", "submitit", "locks"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "launcher.lock").touch()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}). Change its permissions.") from error
    process = pid.read_text() if pid.exists() else "unknown"
    busy = f"another launcher (process {process}) works on this table. Wait for it, or see how far it is with --status."
    lock = held_lock(folder / "launcher.lock", busy)
    write_text(pid, str(os.getpid()))
    return lock


@dataclass
class Launcher:
    """Runs the jobs of one table: some wait, some run, some have failed for good."""

    folder: Path
    cluster: Cluster
    say: Callable[[str], None]
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Running] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)  # how it ended, by the name of the job

    def run(self, jobs: list[Job]) -> None:
        """Run the jobs that are not done. Raises Interrupted after Ctrl-C or SIGTERM, once all have stopped."""
        for job in jobs:
            if progress(job).state == DONE:
                continue
            if earlier := still_running(self.folder, job):
                self.say(f"{job.title}: still running, started by an earlier launcher; waiting for it")
                self.running.append(earlier)
            else:
                self.waiting.append(job)
        with signals_noted() as signals:
            while (self.waiting or self.running) and not signals:
                self.start_next()
                self.settle_ended()
                time.sleep(POLL)
            if signals:
                self.stop_all(signals)
        if signals:
            left = "; some runs are still saving" if self.running else ""
            raise Interrupted(f"Stopped{left}. The same command goes on from there; finished rows are not run again.")

    def stop_all(self, signals: list[int]) -> None:
        """Stop all runs, which save first, and wait for the local ones; a second signal ends the waiting."""
        if self.running:
            self.say(f"stopping; each run saves first: {'; '.join(each.job.title for each in self.running)}")
        for each in self.running:
            if isinstance(each.handle, submitit.SlurmJob):
                each.handle.cancel(check=False)
        self.running = [each for each in self.running if not isinstance(each.handle, submitit.SlurmJob)]
        while self.running and len(signals) < 2:
            for each in self.running:
                each.stop()
            time.sleep(POLL)
            self.running = [each for each in self.running if not each.ended()]

    def start_next(self) -> None:
        """Start waiting jobs while there are slots. Rows of the miniature may share a run, which is made once."""
        while len(self.running) < len(self.cluster.slots):
            busy = {each.job.folder for each in self.running}
            job = next((job for job in self.waiting if job.folder not in busy), None)
            if job is None:
                return
            self.waiting.remove(job)
            if progress(job).state == DONE:
                self.say(f"{job.title}: done; its run is another row's too")
                continue
            slot = next(iter(Counter(self.cluster.slots) - Counter(each.slot for each in self.running)))
            self.tries[job.name] += 1
            again = ", second try" if self.tries[job.name] > 1 else ""
            self.say(f"{job.title}: {'submitted' if self.cluster.name == 'slurm' else 'started'}{again}")
            self.running.append(self.start(job, slot))

    def start(self, job: Job, slot: str | None) -> Running:
        """Submit a job and write it to jobs.json."""
        local, lock = self.cluster.name == "local", lock_path(self.folder, job)
        lock.touch()
        devices = slot or os.environ.get("CUDA_VISIBLE_DEVICES")
        environment = {"CUDA_VISIBLE_DEVICES": devices} if local else {}  # submitit hides the devices from local jobs
        executor = submitit.AutoExecutor(
            folder=self.folder / "submitit", cluster=self.cluster.name, slurm_max_num_timeout=TIMEOUTS
        )
        executor.update_parameters(name=job.name, **{"timeout_min": YEAR} | self.cluster.parameters)
        command = Command(job.words, log_path(self.folder, job), lock if local else None, environment)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the launcher alone
        try:
            handle = executor.submit(command)
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"{job.title}: not submitted: {error}") from error
        finally:
            signal.signal(signal.SIGINT, before)
        note = {"executor": self.cluster.name, "job": handle.job_id, "slot": slot}
        write_text(self.folder / "jobs.json", json.dumps(started(self.folder) | {job.name: note}, indent=1) + "\n")
        return Running(job, handle, slot, lock)

    def settle_ended(self) -> None:
        """Take ended jobs off the list: done, once more, or failed."""
        for each in [each for each in self.running if each.ended()]:
            self.running.remove(each)
            job, at = each.job, progress(each.job)
            if at.state == DONE:
                values = ", ".join(f"{metric} {value:.2f}" for metric, value in at.values.items())
                self.say(f"{job.title}: done; {values}")
                continue
            code = exit_code(each.handle)
            if self.tries[job.name] < TRIES:
                self.say(f"{job.title}: {code}, after {at.tasks} tasks; see {log_path(self.folder, job)}")
                self.waiting.appendleft(job)
            else:
                self.say(f"{job.title}: {code} again; given up")
                self.failed[job.name] = code


def log_path(folder: Path, job: Job) -> Path:
    return folder / "logs" / f"{job.name}.log"


def lock_path(folder: Path, job: Job) -> Path:
    return folder / "locks" / job.name


def started(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of jobs.json: executor, job id and slot of the last start of each job, by its name."""
    path = folder / "jobs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def still_running(folder: Path, job: Job) -> Running | None:
    """The job as an earlier launcher started it; None unless it still runs."""
    note, lock = started(folder).get(job.name, {}), lock_path(folder, job)
    if note.get("executor") == "slurm":
        earlier = Running(job, submitit.SlurmJob(folder / "submitit", note["job"]), note["slot"], lock)
        return None if earlier.ended() else earlier
    return Running(job, None, note.get("slot"), lock) if is_busy(lock) else None


def exit_code(handle: submitit.Job | None) -> str:
    """How a job ended that is not done, in words."""
    if handle is None or not handle.paths.result_pickle.exists():
        return "ended unseen"
    if handle.exception():  # of submitit or of what it called, not of the command
        return f"not started (see {handle.paths.stderr})"
    code = handle.result()
    return {0: "ended without its last records", 130: "interrupted"}.get(code, f"failed with exit code {code}")


def log_end(path: Path) -> str:
    """The last lines of a log, indented."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES:])


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """A list to which every Ctrl-C and SIGTERM adds its number."""
    noted: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: noted.append(number)) for number in numbers]
    try:
        yield noted
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)
