"""A torchrun that ends with one sentence, and with the exit code of its ranks.

Its arguments are those of torch.distributed.run; tools/torchrun.sh calls it.

It passes SIGINT and SIGTERM on to the ranks, which then have ten minutes to end their step and to
write a checkpoint. When a rank fails, the others end at once, because they would wait in vain.
"""

import logging
import signal
import sys
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

STOP_TIMEOUT = 600  # s, for ranks to end after a signal
FATAL = signal.SIGUSR1  # no rank handles it, so it ends a rank that waits for another
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of ranks that a signal stopped

_close = PContext.close


def close_ranks(ranks: PContext, death_sig: signal.Signals | None = None, timeout: int = 5) -> None:
    """End the ranks in place of torch; without ``death_sig`` one of them failed."""
    if death_sig is None:
        _close(ranks, FATAL, timeout)
    else:
        _close(ranks, death_sig, STOP_TIMEOUT)


def final_message(failures: dict[int, Any]) -> tuple[str, int]:
    """Return a message on failed ranks and the exit code; no message if a rank printed its own.

    Args:
        failures: rank → torch's ``ProcessFailure``, negative exit codes for signals.
    """
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    for rank, code in codes.items():
        if code < 0 and code not in (-FATAL, -signal.SIGTERM):
            memory = ' (as the system does when memory runs out)' if -code == signal.SIGKILL else ''
            return (f'Error: rank {rank} (process {failures[rank].pid}) was killed by '
                    f'{signal.Signals(-code).name}{memory}, and the other ranks were stopped.',
                    128 - code)
    for code in codes.values():
        if code in STOPPED:
            return '', code
    return '', max(1, *codes.values())


def main() -> int:
    """Run torchrun and return its exit code."""
    PContext.close = close_ranks
    logging.disable(logging.ERROR)  # torch's report of the same failure
    try:
        run.main()
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        sentence, code = final_message(error.failures)
        if sentence:
            print(sentence, file=sys.stderr)
        return code
    return 0


if __name__ == '__main__':
    sys.exit(main())
