"""What tools/data/check.py finds in the data sets of a config, before anything is trained.

The checks are those of :class:`~pera_mm.downstream.data_check.DataCheckHook`. It also counts sizes
and types, compares the bytes of the images of training and test, names files that no sample uses,
and makes pictures for the contact sheet. It needs no weights and builds no model.
"""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from numpy.typing import NDArray

from pera_mm.datasets.masks import UNLABELLED
from pera_mm.datasets.matching import MASK_TYPES, MAX_NAMED, first_few, list_images
from pera_mm.datasets.reading import UnreadableImage, as_unreadable, decode_safely
from pera_mm.datasets.unlabeled import UnlabeledImages
from pera_mm.downstream.class_check import class_faults, heads_of
from pera_mm.downstream.class_shares import ClassCounts, LabelCounter, join
from pera_mm.downstream.contact_sheet import Picture, make_small
from pera_mm.downstream.sample_check import (
    Head,
    check_sizes,
    datasets_in,
    fault_of_unreadable,
    head_of,
    load,
    paths_of,
    read_heads,
    window_of,
)
from pera_mm.errors import UserError, printable
from pera_mm.files import sha256
from pera_mm.prepare.jobs import Progress, in_threads

SPLITS = ('train', 'val', 'test')
CHUNK = 64  # samples whose heads one job reads
SHOWN = 12  # pictures of each split
LABEL_FILES = (*MASK_TYPES, '.xml')


class SplitReport:
    """What was found in a split.

    Attributes:
        name: Such as 'train', or 'val and test' if both are the same.
        samples: The number of samples.
        decoded: The number of samples of which image and mask were decoded.
        sizes: (width, height) of images and masks to their number.
        kinds: Type of the pixels, as of :class:`~pera_mm.downstream.sample_check.Head`, to number.
        counts: The labels; None: unknown.
        classes: The names of the classes.
        files: All paths that the samples name; ``images`` are those of images.
        unreadable: Path to reason.
        faults: A sentence for each thing that is wrong.
        pictures: For the contact sheet.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples = self.decoded = 0
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.kinds: Counter[str] = Counter()
        self.counts: ClassCounts | None = None
        self.classes: tuple[str, ...] = ()
        self.files: set[str] = set()
        self.images: list[str] = []
        self.unreadable: dict[str, str] = {}
        self.faults: list[str] = []
        self.pictures: list[Picture] = []


class Report(NamedTuple):
    """The splits, what is wrong, what else a user may want to know, and the number of classes.

    Attributes:
        splits: What was found in each.
        faults: Sentences: any of them makes the check fail.
        notes: Sentences.
        duplicates: The number of images of each other split that training has, too.
    """

    splits: list[SplitReport]
    faults: list[str]
    notes: list[str]
    duplicates: dict[str, int]


class Settings(NamedTuple):
    """How much is read, by how many threads, and the bar that shows it.

    Attributes:
        images: The most samples of a split that are decoded, evenly spread; None: all.
        workers: The number of threads.
        progress: The bar.
    """

    images: int | None
    workers: int
    progress: Progress


def check_data(cfg: Config, settings: Settings) -> Report:
    """Check the data sets of a config for training, validation and test.

    Args:
        cfg: Of any of the four tasks, or of pre-training.
        settings: How.

    Raises:
        ValueError: if the config has no data set.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    splits, notes = [], []
    datasets: list[Any] = []
    for name, given in _data_sets_of(cfg).items():
        report = SplitReport(name)
        splits.append(report)
        with _warnings() as said:
            try:
                parts = datasets_in(DATASETS.build(given))
                for part in parts:
                    if hasattr(part, 'full_init'):  # which may have been put off
                        part.full_init()
            except UserError as error:
                report.faults.append(f'{name}: {error}')
                continue
            finally:
                report.faults += [f'{name}: {text}' for text in said]
        with _warnings() as said:
            _check_split(report, parts, cfg, settings)
        notes += [f'{name}: {text}' for text in said]
        datasets += parts
        if name.startswith('train and'):
            report.faults.append(f'{name} have the same data set, so the score is that of the '
                                 'training: give each its own in the config.')
    faults = [fault for report in splits for fault in report.faults]
    heads = heads_of(cfg.get('model') or {})
    faults += class_faults({report.name: report.counts for report in splits}, heads)
    duplicates = _duplicates(splits, settings)
    for name, pairs in duplicates.items():
        faults.append(
            f'{len(pairs)} images of the {name} set have the bytes of one of the train set, so the '
            f'score is too good: {first_few([f"{own} ({other})" for own, other in pairs])}; take '
            'them out of one of the two.')
    if all(report.samples for report in splits):
        notes += _unused(datasets, set().union(*(report.files for report in splits)))
    return Report(splits, faults, notes, {name: len(pairs) for name, pairs in duplicates.items()})


def _data_sets_of(cfg: Config) -> dict[str, Any]:
    """Find the data sets of a config: those of several splits that are equal are one."""
    found: list[tuple[list[str], Any]] = []
    for split in SPLITS:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        same = next((names for names, other in found if other == dataset), None)
        if same is not None:
            same.append(split)
        elif dataset is not None:
            found.append(([split], dataset))
    if not found:
        raise UserError(f'{cfg.filename} has no data set: give a config with a train_dataloader.')
    return {' and '.join(names): dataset for names, dataset in found}


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what is logged as a warning, instead of printing it."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = MMLogger.get_current_instance()
    before, logger.handlers = logger.handlers, [handler]
    try:
        yield said
    finally:
        logger.handlers = before


def _check_split(report: SplitReport, parts: Sequence[Any], cfg: Config,
                 settings: Settings) -> None:
    report.samples = sum(map(len, parts))
    number = report.samples if settings.images is None else min(settings.images, report.samples)
    chosen = np.linspace(0, report.samples - 1, number, dtype=int)
    shown = {*chosen[np.linspace(0, number - 1, min(SHOWN, number), dtype=int)].tolist()}
    counts, start = [], 0
    faults: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        inside = slice(*np.searchsorted(chosen, (start, start + len(part))))
        mine = (chosen[inside] - start).tolist()
        pictures = {index for index in mine if index + start in shown}
        if isinstance(part, UnlabeledImages):
            _read_unlabelled(report, part, mine, pictures, settings)
        else:
            counts.append(_read_labelled(report, part, mine, pictures, cfg, settings, faults))
        start += len(part)
    report.counts = join(counts)
    report.faults += [f'{found[0].rstrip(".")}'
                      f'{f" (and {len(found) - 1} more samples)" if len(found) > 1 else ""}.'
                      for found in faults.values() if found]
    split = 'train' if report.name.startswith('train') else report.name
    if fault := fault_of_unreadable(report.unreadable, split, report.samples):
        report.faults.append(fault.text)


def _read_labelled(report: SplitReport, dataset: Any, chosen: list[int], shown: set[int],
                   cfg: Config, settings: Settings, faults: dict[str, list[str]],
                   ) -> ClassCounts | None:
    """Read all heads and the chosen samples; count their labels."""
    model = cfg.get('model') or {}
    test_cfg = None if report.name.startswith('train') else model.get('test_cfg') or {}
    counter = LabelCounter(dataset)
    report.classes = report.classes or counter.names
    window = window_of(dataset, test_cfg)
    chunks = [range(start, min(start + CHUNK, len(dataset)))
              for start in range(0, len(dataset), CHUNK)]
    headers = in_threads(partial(_heads, dataset, window), chunks, settings.workers)
    for found in settings.progress(headers, f'{report.name}: heads', len(chunks)):
        for sample, heads, broken, fault in found:
            report.unreadable.update(broken)
            report.sizes.update(head[:2] for head in heads.values())
            report.kinds.update(head.kind for head in heads.values())
            report.files.update(paths_of(sample), filter(None, [sample.get('xml_path')]))
            report.images += [path for path in paths_of(sample)
                              if path != sample.get('seg_map_path')]
            if fault:
                faults['files'].append(fault)
            with _noted(faults['labels']):
                counter.add_sample(sample)
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    is_bgr = bool(preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb'))
    pixels = in_threads(partial(_decode, dataset, shown, is_bgr, counter.names), chosen,
                        settings.workers)
    for path, values, unreadable, refusal, picture in settings.progress(
            pixels, f'{report.name}: pixels', len(chosen)):
        report.decoded += 1
        report.unreadable.update(unreadable)
        if refusal:
            faults['masks'].append(refusal)
        if values is not None:
            with _noted(faults['masks']):
                counter.add_values(values, path)
        if picture is not None:
            report.pictures.append(picture)
    return counter.result()


@contextmanager
def _noted(faults: list[str]) -> Iterator[None]:
    """Note a fault that a user can mend."""
    try:
        yield
    except UserError as error:
        faults.append(str(error))


def _heads(dataset: Any, window: Sequence[int] | None, indexes: Iterable[int],
           ) -> list[tuple[dict, dict[str, Head], dict[str, str], str]]:
    """Read the heads of some samples; the last of each is what is wrong, or an empty text."""
    result = []
    for index in indexes:
        sample = dataset.get_data_info(index)
        faults: list[str] = []
        heads: dict[str, Head] = {}
        unreadable: dict[str, str] = {}
        with _noted(faults):
            heads, unreadable = read_heads(sample)
            check_sizes(heads, window if sample.get('seg_map_path') else None)
        result.append((sample, heads, unreadable, ''.join(faults)))
    return result


def _decode(dataset: Any, shown: set[int], is_bgr: bool, classes: tuple[str, ...], index: int,
            ) -> tuple[str, NDArray[np.int64] | None, dict[str, str], str, Picture | None]:
    """Decode a sample: the mask's path, its pixels of each value, and what is wrong with it."""
    sample = dataset.get_data_info(index)
    path = sample.get('seg_map_path') or ''
    faults: list[str] = []
    loaded = None
    with _noted(faults):
        loaded = load(sample, dataset.pipeline.transforms)
    if loaded is None:
        return path, None, {}, ''.join(faults), None
    values, picture = None, None
    if loaded.mask is not None:
        values = np.bincount(loaded.mask.reshape(-1), minlength=UNLABELLED + 1)
    if index in shown and loaded.image is not None:
        picture = make_small(loaded.image, is_bgr, sample, loaded.mask, classes)
    return path, values, loaded.unreadable, '', picture


def _read_unlabelled(report: SplitReport, dataset: UnlabeledImages, chosen: list[int],
                     shown: set[int], settings: Settings) -> None:
    """Read the chosen images of pre-training."""
    work = in_threads(partial(_decode_unlabelled, dataset), chosen, settings.workers)
    found = settings.progress(work, f'{report.name}: pixels', len(chosen))
    for (name, head, pixels), index in zip(found, chosen):  # in this order the bar ends
        report.decoded += 1
        if isinstance(pixels, str):
            report.unreadable[name] = pixels
            continue
        report.sizes[head[:2]] += 1
        report.kinds[head.kind] += 1
        if index in shown:
            report.pictures.append(make_small(pixels, False, dict(img_path=name), None, ()))


def _decode_unlabelled(dataset: UnlabeledImages, index: int) -> tuple[str, Head, Any]:
    """Decode an image: its name, its head, and the pixels or why there are none."""
    number = int(np.searchsorted(dataset.ends, index, side='right'))
    images = dataset.sources[number]
    place = index - (int(dataset.ends[number]) - len(images))
    name = images.name(place)
    try:
        data = images.read(place)
        pixels = decode_safely(data, *dataset.rules[number], name)
        with as_unreadable():
            return name, head_of(data), pixels
    except UnreadableImage as error:
        return name, Head(0, 0, ''), str(error)


def _duplicates(splits: Sequence[SplitReport], settings: Settings,
                ) -> dict[str, list[tuple[str, str]]]:
    """Find the images of the other splits whose bytes an image of training has, too.

    Only files of one length are hashed.

    Returns:
        Split to pairs of its image and that of training.
    """
    train = [report for report in splits if report.name.startswith('train')]
    others = [report for report in splits if not report.name.startswith('train')]
    lengths = {path: length for report in splits for path in report.images
               if (length := _length(path)) is not None}
    ours = {path for report in train for path in report.images if path in lengths}
    theirs = {path for report in others for path in report.images if path in lengths}
    shared = {lengths[path] for path in ours} & {lengths[path] for path in theirs}
    files = sorted(path for path in ours | theirs if lengths[path] in shared)
    work = in_threads(_digest, files, settings.workers)
    hashed = [*settings.progress(work, 'duplicates', len(files))]
    digests = dict(zip(files, hashed))
    first = {digests[path]: path for path in reversed(files) if path in ours and digests[path]}
    found = {report.name: [(path, first[digests[path]]) for path in dict.fromkeys(report.images)
                           if digests.get(path) in first] for report in others}
    return {name: pairs for name, pairs in found.items() if pairs}


def _length(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except OSError:  # missing: a fault of its sample
        return None


def _digest(path: str) -> str | None:
    try:
        return sha256(Path(path))
    except OSError:
        return None


def _unused(datasets: Sequence[Any], used: set[str]) -> list[str]:
    """Name the files in the folders of the data sets that no sample has."""
    known = {os.path.realpath(path) for path in used}
    folders = {folder for dataset in datasets for folder in _folders(dataset)}
    notes = []
    for folder in sorted(folders):
        left = [path for path in list_images(folder, LABEL_FILES)
                if os.path.realpath(os.path.join(folder, path)) not in known]
        if left:
            notes.append(f'no sample of any split uses {len(left)} files in {printable(folder)}: '
                         f'{first_few(left)}.')
    return notes


def _folders(dataset: Any) -> list[str]:
    prefix = getattr(dataset, 'data_prefix', None)
    folders = prefix.values() if isinstance(prefix, Mapping) else [prefix]
    return [folder for folder in folders if folder and os.path.isdir(folder)]


def commonest(counts: Mapping[Any, int], write: Any = str) -> str:
    """Write the commonest entries with their numbers, most of them first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    texts = [f'{write(key)}: {number:,}' for key, number in ordered[:MAX_NAMED]]
    return ', '.join(texts + [f'and {len(ordered) - MAX_NAMED} others'] * (
        len(ordered) > MAX_NAMED)) or '-'
