"""Predict a scene with geoai (opengeos/geoai), as a child of predict_scenes.py.

It runs in an environment of geoai's own, without pera_mm. The first argument is JSON; the last line
that it prints, too.
"""

import json
import resource
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Exported(torch.nn.Module):
    """A program of torch.export as a module that has eval(), and the seconds it took."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.programs = [torch.export.load(path).module()]  # in a list: it refuses eval()
        self.seconds = 0.

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        result = self.programs[0](images)
        self.seconds += time.perf_counter() - start
        return result


def peak_gib() -> float:
    """Return the most memory that this process has held."""
    # Not getrusage: its maximum survives the start of a new program.
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM:')) / 2**20


def predict(order: dict[str, Any]) -> dict[str, Any]:
    """Write the class map of a scene; return what it cost."""
    predict_geotiff = import_module('geoai.inference').predict_geotiff
    import_module('geoai.utils')  # it would be imported while the clock runs
    model = Exported(order['program'])
    mean, std = (np.array(order[key], np.float32)[:, None, None] for key in ('mean', 'std'))
    limit = int(order['limit_gib'] * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    start, cpu = time.perf_counter(), time.process_time()
    predict_geotiff(
        model, order['scene'], order['output'], tile_size=order['window'],
        overlap=order['overlap'], batch_size=order['batch_size'], num_classes=order['classes'],
        output_dtype='uint8', output_nodata=255, blend_mode='cosine', compress='deflate',
        preprocess_fn=lambda tile: (tile - mean) / std,
        postprocess_fn=lambda scores: scores.argmax(axis=0)[None], device='cpu', verbose=False)
    return dict(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu,
                model_seconds=model.seconds, peak_gib=peak_gib(),
                version=import_module('geoai').__version__)


def main() -> None:
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order['threads'])
    try:
        print(json.dumps(predict(order)))
    except MemoryError:
        sys.exit(f'more than {order["limit_gib"]:g} GiB')


if __name__ == '__main__':
    main()
