import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count, islice
from pathlib import Path

import pytest

from pera_mm.collect.common import processes
from pera_mm.collect.common.processes import CHUNK, CHUNKS_PER_ROUND, check_workers, in_processes


def double_or_fail(at, number):
    if number == at:
        raise OSError(28, 'No space left on device')
    return 2 * number, os.getpid()


def test_results_come_in_order_from_several_processes_and_an_error_comes_through(monkeypatch):
    monkeypatch.setattr(processes, 'SERIAL_SECONDS', 0)
    number = 3 * CHUNK * CHUNKS_PER_ROUND
    results = []
    with pytest.raises(OSError, match='No space left'):
        for result, process in in_processes(partial(double_or_fail, number), count(), 2):
            results.append((result, process))
    assert [result for result, _ in results] == list(range(0, 2 * len(results), 2))
    assert number - 2 * CHUNK * CHUNKS_PER_ROUND <= len(results) <= number
    assert os.getpid() not in {process for _, process in results[1:]}


def test_few_items_and_one_worker_start_no_process(monkeypatch):
    for workers, items in ((4, iter(range(400))), (1, count())):
        monkeypatch.setattr(processes, 'SERIAL_SECONDS', 60 if workers > 1 else 0)
        results = islice(in_processes(partial(double_or_fail, -1), items, workers), 5)
        assert list(results) == [(2 * number, os.getpid()) for number in range(5)]
    assert list(in_processes(str, [], 2)) == []


INTERRUPTED = """
import sys, time
from pera_mm.collect.common import processes

def slow(number):
    time.sleep(0.05)
    return number

if __name__ == '__main__':
    processes.SERIAL_SECONDS = 0
    try:
        for number in processes.in_processes(slow, range(10_000), 2):
            print(number, flush=True)
    except KeyboardInterrupt:
        sys.exit(3)
"""


@pytest.mark.slow
def test_ctrl_c_says_nothing_while_processes_start(tmp_path):
    """It reaches the whole process group: here after the first result, when the fork server starts
    and imports this package."""
    (tmp_path / 'slow.py').write_text(INTERRUPTED)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    process = subprocess.Popen(
        [sys.executable, tmp_path / 'slow.py'], start_new_session=True, text=True,
        env=os.environ | {'PYTHONPATH': paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline()
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (3, '')


@pytest.mark.parametrize('workers', [0, -1, 1.5, None, True])
def test_workers_is_a_number_of_processes(workers):
    with pytest.raises(ValueError, match='workers must be a number of processes, 1 or more'):
        check_workers(workers)
