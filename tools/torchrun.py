"""torchrun that ends with one sentence, and with the exit code of its ranks.

Arguments are those of torch.distributed.run; tools/torchrun.sh calls it.

SIGINT and SIGTERM are passed on to the ranks, which then have ten minutes to end their step and to
write a checkpoint. When a rank fails, the others would wait for it in vain: they end at once.
"""

import logging
import signal
import sys
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

PATIENCE = 600  # s
FATAL = signal.SIGUSR1  # nobody answers it, so that it ends a rank that waits for another
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of ranks that a signal stopped

_close = PContext.close


def close(ranks: PContext, death_sig: signal.Signals | None = None, timeout: int = 5) -> None:
    """End the ranks, without ``death_sig`` because one of them failed; in place of torch's."""
    if death_sig is None:
        _close(ranks, FATAL, timeout)
    else:
        _close(ranks, death_sig, PATIENCE)


def ending(failures: dict[int, Any]) -> tuple[str, int]:
    """What to say of failed ranks, and the exit code; a rank with an exit code has spoken itself.

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
    """Run torchrun; its exit code."""
    PContext.close = close
    logging.disable(logging.ERROR)  # torch's account of the same
    try:
        run.main()
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        sentence, code = ending(error.failures)
        if sentence:
            print(sentence, file=sys.stderr)
        return code
    return 0


if __name__ == '__main__':
    sys.exit(main())
