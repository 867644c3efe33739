"""Run many trainings, a few at a time; they can be stopped and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pera_mm.files import write_whole
from pera_mm.stopping import sigterm_as_interrupt

ROOT = Path(__file__).resolve().parents[2]
POLL = 0.5  # seconds between two checks of the processes
GRACE = 10.  # seconds for a stopped process to end


class Step(NamedTuple):
    """A command and the JSON file that exists when it is done."""

    command: tuple[str, ...]
    result: Path
    summary: Callable[[], Any] | None = None  # what to write there; None: the command writes it


class TrainingJob(NamedTuple):
    """A sequence of steps; all that they print goes to one log."""

    name: str
    log: Path
    steps: tuple[Step, ...]

    def next_step(self) -> Step | None:
        return next((step for step in self.steps if not step.result.exists()), None)


def train_command(config: Path, work_dir: Path, *options: str) -> tuple[str, ...]:
    """Build the command of a training that continues from the last checkpoint, if any."""
    return (sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir),
            '--resume', '--cfg-options', *options)


def check_unique(option: str, values: Sequence) -> None:
    """Refuse values that are given twice.

    Raises:
        SystemExit: if there are some.
    """
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise SystemExit(f'{option} has {", ".join(map(str, twice))} more than once.')


def run_all(jobs: Sequence[TrainingJob], at_a_time: int,
            show: Callable[[list[TrainingJob], list[TrainingJob]], None] = lambda *_: None,
            ) -> list[TrainingJob]:
    """Run what is not done yet, each command on one thread, and return the jobs that failed.

    A job that fails does not stop the others. Ctrl-C and SIGTERM end all commands.

    Args:
        jobs: to start in this order.
        at_a_time: how many run at once.
        show: called often with the jobs that run and those that ended since the last call.
    """
    waiting = deque(jobs)
    running: dict[TrainingJob, tuple[Step, subprocess.Popen]] = {}
    failed = []
    try:
        with sigterm_as_interrupt():
            while waiting or running:
                ended = []
                while waiting and len(running) < at_a_time:
                    job = waiting.popleft()
                    if not _start_next(job, running):
                        ended.append(job)
                for job, (step, process) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[job]
                    if not _succeeded(step, process):
                        failed.append(job)
                        ended.append(job)
                    elif not _start_next(job, running):
                        ended.append(job)
                show(list(running), ended)
                time.sleep(POLL if running else 0)
    finally:
        _stop([process for _, process in running.values()])
    return failed


def _start_next(job: TrainingJob,
                running: dict[TrainingJob, tuple[Step, subprocess.Popen]]) -> bool:
    """Start the next step of a job; False if there is none."""
    step = job.next_step()
    if step is None:
        return False
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, 'a') as output:
        # In its own session: Ctrl-C reaches only us, and we end the workers with their parent.
        process = subprocess.Popen(
            step.command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {'OMP_NUM_THREADS': '1'})
    running[job] = step, process
    return True


def _succeeded(step: Step, process: subprocess.Popen) -> bool:
    if process.returncode:
        return False
    if step.summary is not None:
        write_whole(step.result, json.dumps(step.summary()).encode())
    return step.result.exists()


def _stop(processes: list[subprocess.Popen]) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signum)
        end = time.monotonic() + GRACE
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            time.sleep(POLL)


def logged_scalars(work_dir: Path) -> list[dict]:
    """Read what a training logged in all its attempts, the lines of the last one last."""
    return [json.loads(line) for file in sorted(work_dir.glob('*/vis_data/scalars.json'))
            for line in file.read_text().splitlines() if line.endswith('}')]
