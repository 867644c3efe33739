import os
from functools import partial
from itertools import count, islice

import pytest

from pera_mm.collect.processes import CHUNK, FEW, ROUND, check_workers, in_processes


def double_or_fail(at, number):
    if number == at:
        raise OSError(28, 'No space left on device')
    return 2 * number, os.getpid()


def test_results_come_in_order_from_several_processes_and_an_error_comes_through():
    number = 3 * CHUNK * ROUND
    results = []
    with pytest.raises(OSError, match='No space left'):
        for result, process in in_processes(partial(double_or_fail, number), count(), 2):
            results.append((result, process))
    assert [result for result, _ in results] == list(range(0, 2 * len(results), 2))
    assert number - 2 * CHUNK * ROUND <= len(results) <= number
    assert os.getpid() not in {process for _, process in results}


def test_few_items_and_one_worker_start_no_process():
    for workers, items in ((1, count()), (4, iter(range(FEW - 1)))):
        results = islice(in_processes(partial(double_or_fail, -1), items, workers), 5)
        assert list(results) == [(2 * number, os.getpid()) for number in range(5)]
    assert list(in_processes(str, [], 2)) == []


@pytest.mark.parametrize('workers', [0, -1, 1.5, None])
def test_workers_is_a_number_of_processes(workers):
    with pytest.raises(ValueError, match='workers must be a number of processes, 1 or more'):
        check_workers(workers)
