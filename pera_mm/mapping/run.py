"""The prediction of whole scenes, on one process or many, and again after a kill."""

import hashlib
import math
import os
import re
import resource
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import rasterio
from rasterio.errors import NotGeoreferencedWarning

import pera_mm
from pera_mm.datasets.scene import list_scenes
from pera_mm.datasets.scene_grids import SETTINGS, URL
from pera_mm.datasets.scene_pixels import Reading
from pera_mm.errors import MissingFileError, UserError
from pera_mm.files import sha256
from pera_mm.launch import merge_options, read_config
from pera_mm.mapping.classification import GridJob, write_table
from pera_mm.mapping.detection import BoxJob
from pera_mm.mapping.job import Job, MapJob, Options, Strip
from pera_mm.mapping.predictor import Classifier, Detector, TrainedModel, load_model
from pera_mm.mapping.ranks import Meter, Ranks

BATCH_PIXELS = {'cpu': 512**2, 'cuda': 8 * 512**2}  # of the windows of a batch
MAX_BATCH = 32
VECTORS = ('gpkg', 'parquet', 'fgb', 'geojson')


class Outcome(NamedTuple):
    """What became of a scene: its map, boxes or table, or the reason why there is none."""

    scene: str
    output: Path
    error: str | None
    overlap: float  # the share of the scene that the older date covers, if there are two


def predict(config: str | Path, checkpoint: str | Path, scenes: str | Path | Sequence[str | Path],
            output: str | Path, *, cfg_options: Mapping[str, Any] | None = None,
            launcher: str = 'none', progress: bool = False, **options: Any) -> list[Outcome]:
    """Predict maps of whole scenes.

    Args:
        config: of the model, a file.
        checkpoint: as the training wrote it, a file.
        scenes: files, URLs, folders, or lists of them (``.txt``).
        output: a folder, or for one scene a file ``.tif``.
        cfg_options: changes of the config, as ``--cfg-options`` of tools/train.py.
        launcher: ``'none'``, or ``'pytorch'`` or ``'slurm'`` where several processes run the same
            command.
        progress: show a bar.
        options: the fields of :class:`~pera_mm.mapping.job.Options`.

    Returns:
        What became of each scene, in their order. A scene that fails does not stop the others.

    Raises:
        UserError: if the model or an option cannot be used, or there is no such scene.
    """
    chosen = Options(**options)
    _check_numbers(chosen)
    places = list_scenes([scenes] if isinstance(scenes, str | os.PathLike) else scenes)
    cfg = read_config(str(config))
    merge_options(cfg, dict(cfg_options or {}))
    if not Path(checkpoint).is_file():
        raise MissingFileError(f'No checkpoint at {checkpoint}.')
    ranks = Ranks(launcher)
    predictor = load_model(cfg, checkpoint, ranks.device, chosen.tta)
    if isinstance(predictor, Classifier) and _is_table(Path(output)):
        _check_options_of_table(chosen)
        errors = write_table(predictor, cfg, places, Path(output), ranks, chosen.batch_size or 1)
        return [Outcome(place, Path(output), errors.get(place), 1.) for place in places]
    _check_options(chosen, predictor, places)
    _check_polygons(chosen, predictor)
    predictor.reading = _reading(predictor.reading, chosen)
    if chosen.batch_size is None:
        chosen = replace(chosen, batch_size=_batch_size(predictor.window, ranks.device))
    recipe = {
        'checkpoint': sha256(Path(checkpoint)), 'aoi': chosen.aoi and sha256(Path(chosen.aoi)),
        'config': hashlib.sha256(repr(cfg.model.to_dict()).encode()).hexdigest(),
        'window': predictor.window, 'reading': list(predictor.reading), 'gsd': chosen.gsd,
        'blend': chosen.blend, 'overlap': chosen.overlap, 'tta': chosen.tta,
        'scores': chosen.scores, 'vectors': chosen.vectors is not None, 'memory': chosen.memory,
        'batch_size': chosen.batch_size, 'version': pera_mm.__version__}
    kind: type[Job] = MapJob
    suffixes = MapJob.suffixes
    if isinstance(predictor, Classifier):
        kind = GridJob
    elif isinstance(predictor, Detector):
        kind, suffixes = BoxJob, BoxJob.suffixes
        if chosen.vectors is not None:
            suffixes = (f'.{chosen.vectors}',)
    jobs = [kind(place, target, predictor, chosen, recipe, Path(config).name)
            for place, target in zip(places, _outputs(places, Path(output), suffixes))]
    _check_inputs(jobs)
    with rasterio.Env(**SETTINGS), warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        try:
            _run(jobs, ranks, progress)
        finally:
            for job in jobs:
                job.release()
    return [Outcome(job.place, job.output, job.error, job.overlap) for job in jobs]


def _run(jobs: Sequence[Job], ranks: Ranks, progress: bool) -> None:
    for job in jobs:
        job.try_to(job.look)
    _share_errors(jobs, ranks)
    if ranks.is_first:
        _allow_open_files(len(jobs))  # the locks of their claims
        for job in jobs:
            job.begin()
    _share_errors(jobs, ranks)
    for job, done in zip(jobs, ranks.from_first([job.done for job in jobs])):
        job.done = done
    strips = ranks.from_first([job.missing() if ranks.is_first else [] for job in jobs])
    mine = _share(strips, ranks.rank, ranks.world)
    total = sum(job.pixels(strip) for job, strips in zip(jobs, mine) for strip in strips)
    with Meter(total, progress and ranks.is_first) as meter:
        for job, part in zip(jobs, mine):
            meter.begin(Path(job.place).name, job.pixel_area)
            job.predict_strips(part, meter.advance)
            if ranks.world == 1:
                job.try_to(job.finish)
                job.clear()
        if ranks.world > 1:
            _share_errors(jobs, ranks)
            for job in jobs[ranks.rank::ranks.world]:
                job.try_to(job.finish)
            _share_errors(jobs, ranks)
            if ranks.is_first:
                for job in jobs:
                    job.clear()


def _allow_open_files(number: int) -> None:
    """Let this process have so many more files open, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft + number, hard), hard))


def _share(strips: Sequence[Sequence[Strip]], rank: int, world: int) -> list[list[Strip]]:
    """Return the strips of each scene that a rank predicts, neighbors if possible."""
    flat = [(number, strip) for number, each in enumerate(strips) for strip in each]
    mine: list[list[Strip]] = [[] for _ in strips]
    for number, strip in flat[len(flat) * rank // world:len(flat) * (rank + 1) // world]:
        mine[number].append(strip)
    return mine


def _share_errors(jobs: Sequence[Job], ranks: Ranks) -> None:
    """Let each rank know what failed on another."""
    for errors in ranks.from_all([job.error for job in jobs]):
        for job, error in zip(jobs, errors):
            job.error = job.error or error


def _batch_size(window: int, device: str) -> int:
    pixels = BATCH_PIXELS['cpu' if device == 'cpu' else 'cuda']
    return min(max(pixels // window**2, 1), MAX_BATCH)


def _reading(reading: Reading, options: Options) -> Reading:
    """Return how the model reads pixels, with the bands and the scale of the options."""
    if options.bands is not None:
        if len(options.bands) not in (1, reading.channels) or min(options.bands) < 1:
            raise UserError(f'--bands takes {reading.channels} numbers from 1 on for this model, '
                            f'or one of gray, not {" ".join(map(str, options.bands))}.')
        reading = reading._replace(bands=tuple(options.bands))
    if options.scale != 'auto':
        if reading.scale is None:
            raise UserError('--scale has no effect on this model, which takes the values as they '
                            'are: leave it out.')
        low, high = options.scale
        if not -math.inf < low < high < math.inf:
            raise UserError(f'--scale is LOW HIGH with LOW < HIGH, not {low:g} {high:g}.')
        reading = reading._replace(scale=(low, high))
    return reading


def _check_numbers(options: Options) -> None:
    if not 0 < options.memory < math.inf or (
            options.batch_size is not None and options.batch_size < 1):
        raise UserError('--memory is in GiB, above 0, and --batch-size at least 1.')
    if options.gsd is not None and not 0 < options.gsd < math.inf:
        raise UserError(f'--gsd is the size of a pixel in meters, above 0, not {options.gsd:g}.')


def _is_table(output: Path) -> bool:
    return output.suffix.lower() == '.csv' and not output.is_dir()


def _check_options_of_table(options: Options) -> None:
    """Check that no option is given that has no meaning for images taken whole.

    Raises:
        UserError: if one is.
    """
    given = [f'--{field.name.replace("_", "-")}' for field in fields(Options)
             if field.name != 'batch_size' and getattr(options, field.name) != field.default]
    if given:
        raise UserError(f'A table of images (-o OUT.csv) takes no {", ".join(given)}, because '
                        "images are read as in the model's test: leave that out, or give a folder.")


def _check_options(options: Options, predictor: TrainedModel, places: Sequence[str]) -> None:
    if predictor.dates == 2 and options.before is None:
        raise UserError('This model compares two dates: name the older one with --before.')
    if predictor.dates == 1 and options.before is not None:
        raise UserError('This model takes one date: leave out --before.')
    if options.before is not None and len(places) > 1 and not Path(options.before).is_dir():
        raise UserError(f'--before is one file, {options.before}, for {len(places)} scenes: give a '
                        'folder with a date of the same name for each.')
    if options.aoi is not None and not Path(options.aoi).is_file():
        raise MissingFileError(f'There are no polygons {options.aoi}: check the path.')


def _check_polygons(options: Options, predictor: TrainedModel) -> None:
    """Check the format of polygons or boxes, and that there are polygons for their limits.

    Raises:
        UserError: if the format is unknown, or a limit is out of range or has no polygons.
    """
    if options.min_area or options.simplify:
        if isinstance(predictor, Detector):
            raise UserError('--min-area and --simplify are for the polygons of a map, and this '
                            'model writes boxes: leave them out.')
        if options.vectors is None:
            raise UserError('--min-area and --simplify are for the polygons of --vectors: give '
                            'that too, or leave them out.')
    if options.vectors is None:
        return
    if options.vectors not in VECTORS:
        raise UserError(f'vectors must be one of {", ".join(VECTORS)}, not {options.vectors!r}.')
    from pera_mm.mapping.vector_files import require_geo

    require_geo('writing polygons (--vectors)')
    from pera_mm.mapping.vectors import check_limits

    check_limits(options.min_area, options.simplify)


def _outputs(places: Sequence[str], output: Path, suffixes: Sequence[str]) -> list[Path]:
    """List the outputs of scenes.

    Args:
        places: of the scenes.
        output: a folder or, for one scene, a file.
        suffixes: of files; scenes in a folder get the first.

    Raises:
        UserError: if two scenes have one name, or the output is a file of another kind.
    """
    if output.suffix.lower() in suffixes and not output.is_dir():
        if len(places) > 1:
            raise UserError(f'{output} is one file for {len(places)} scenes: give a folder.')
        targets = [output]
    elif output.is_file():
        raise UserError(f'{output} is a file: give a folder, or a file that ends in '
                        f'{" or ".join(suffixes)}.')
    elif output.suffix[1:2].isalpha() and not output.is_dir():  # v1.2 is a folder
        raise UserError(f'{output} ends in {output.suffix}: give a folder (make it first if this '
                        f'is its name), or a file that ends in {" or ".join(suffixes)}.')
    else:
        targets = [output / f'{_stem(place)}{suffixes[0]}' for place in places]
    twice = {target for target in targets if targets.count(target) > 1}
    if twice:
        raise UserError(f'Two scenes are called {min(twice).stem}: rename one, or predict them '
                        'into two folders.')
    return targets


def _check_inputs(jobs: Sequence[Job]) -> None:
    """Check that no file that is read would be overwritten.

    Raises:
        UserError: if one would be.
    """
    existing = [path for job in jobs for path in job.outputs if path.exists()]
    if not existing:
        return  # before all scenes are opened to list their files
    read = {_number(path): (what, path) for job in jobs for what, path in job.inputs
            if path.exists()}
    for path in existing:
        if _number(path) in read:
            what, place = read[_number(path)]
            raise UserError(f'The output would overwrite {what} {place}: give another one.')


def _number(path: Path) -> tuple[int, int]:
    """Return the numbers of a file's disk and of the file there, the same under all its names."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _stem(place: str) -> str:
    name = re.split(r'[?#]', place)[0] if URL.match(place) else place
    return Path(name).stem
