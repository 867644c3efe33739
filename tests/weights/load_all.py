"""Load every file of a folder and tell what came of it, a line each; run as a child process."""

import json
import resource
import sys
import time
from pathlib import Path

from pera_mm.weights.loading import load_checkpoint


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MiB


for path in sorted(Path(sys.argv[1]).iterdir()):
    start, before, message = time.monotonic(), peak(), ''
    try:
        load_checkpoint(path)
        outcome = 'loaded'
    except Exception as error:
        outcome, message = type(error).__name__, str(error)
    print(json.dumps(dict(name=path.stem, outcome=outcome, message=message,
                          seconds=time.monotonic() - start, mib=peak() - before)), flush=True)
