"""The toolboxes' data sets with labels; unreadable files are replaced or refused."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset
from torch.utils.data import get_worker_info

from pera_mm.datasets.matching import Role, Sample, class_folders, first_few, match
from pera_mm.datasets.text_lists import is_not_utf_8, read_labels, read_lines
from pera_mm.datasets.unlabeled import MAX_REDRAWS
from pera_mm.errors import RunError, UserError
from pera_mm.registry import DATASETS

HOW_TO_NAME = ("name the classes of the dataset in the order of their ids, metainfo=dict(classes="
               "('field', 'road')), and a single one with a comma, ('road', )")


def how_to_prepare(path: str) -> str:
    """Name the tool that makes a missing folder, as a part of a sentence."""
    if path.startswith('data/scenes/'):  # where the twins of configs/scenes look
        return ("draw the scenes with tools/data/make_scenes.py, by the command in the config's "
                'header')
    return 'prepare the data with tools/data/prepare.py'


def with_classes(metainfo: Any, needed: bool = True) -> dict:
    """Check the classes in the ``metainfo`` that a config gives a data set.

    Args:
        metainfo: ``dict(classes=('field', 'road'))``; in place of the names, the path of a text
            file with one on every line.
        needed: Whether there must be classes.

    Returns:
        The metainfo, in which ``classes`` is a tuple, or is not there.

    Raises:
        ValueError: if the classes are not a list of different names.
    """
    if not isinstance(metainfo, Mapping | None):
        raise UserError(f'metainfo={metainfo!r} is not a dict: {HOW_TO_NAME}.')
    given = dict(metainfo or {})
    classes = given.pop('classes', None)
    if classes is None:
        if needed:
            raise UserError(f'the data set has no classes: {HOW_TO_NAME}.')
        return given
    if isinstance(classes, str) and os.path.isfile(classes):
        classes = [line.text.strip() for line in read_lines(classes)]
    if fault := _fault(classes):
        raise UserError(f'classes={classes!r} {fault}: {HOW_TO_NAME}.')
    return given | dict(classes=tuple(classes))


def _fault(classes: Any) -> str | None:
    """Say why these are not a list of different names; None if they are."""
    if isinstance(classes, str):
        return 'is one text, not a list of names'
    if not isinstance(classes, Sequence):
        return f'is a {type(classes).__name__}, not a list of names'
    if not classes:
        return 'is empty'
    seen = set()
    for name in classes:
        if not isinstance(name, str) or not name.strip():
            return f'holds {name!r}, which is not a name'
        if name in seen:
            return f'holds {name!r} twice'
        seen.add(name)
    return None


def classes_of(dataset: Any) -> tuple[str, ...] | None:
    """Return the names of the classes of a data set, by their ids; None if it has numbers only."""
    classes = dataset.metainfo.get('classes')
    return None if classes is None else tuple(classes)


def refuse_or_warn(fault: str, is_test: bool, mend: str, otherwise: str) -> None:
    """Refuse a test set that has a fault; name the fault of a training set in a warning.

    Args:
        fault: What is wrong and where.
        is_test: Whether it is the data of a score.
        mend: What to do, for the error.
        otherwise: What is done about it in training.

    Raises:
        ValueError: of a test set.
    """
    if is_test:
        raise UserError(f'{fault}; a score would not be comparable: {mend}.')
    print_log(f'{fault}; {otherwise}.', 'current', logging.WARNING)


def find_samples(dataset: Any, roles: Mapping[str, Role]) -> list[Sample]:
    """Find the files of each sample of a data set with masks, or in training of the whole ones.

    Args:
        dataset: Of MMEngine's kind: with ``ann_file``, ``data_root`` and ``test_mode``.
        roles: Key to the kind of file, as of :func:`~pera_mm.datasets.matching.match`.

    Raises:
        ValueError: if a folder or the list is missing, or there is no sample; in a test, if a
            sample lacks a file.
    """
    for role in roles.values():
        check_exists(role.folder, 'data_root and data_prefix', is_folder=True)
    if dataset.ann_file:
        check_exists(dataset.ann_file, 'data_root and ann_file', is_folder=False)
    found = match(roles, dataset.ann_file or None, dataset.data_root or '')
    mend = 'repair these files or their names, which are the same for all files of a sample'
    first = next(iter(roles.values()))
    if not found.images:
        kind = f'images *{first.suffix}' if first.suffix else 'images'
        raise UserError(f'No {kind} in {first.folder}: {how_to_prepare(first.folder)}, or correct '
                        'data_root, data_prefix and img_suffix of the dataset.')
    if not found.samples:
        raise UserError(f'{"; ".join(found.faults)}; no sample is left: {mend}.')
    if found.faults:
        refuse_or_warn('; '.join(found.faults), dataset.test_mode, mend, 'the others are used')
    refuse_repeated([sample.name for sample in found.samples], dataset)
    return found.samples


def refuse_repeated(names: Sequence[str], dataset: Any) -> None:
    """Refuse a test set with a list that names a sample twice; say it in training.

    Raises:
        ValueError: in a test.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        refuse_or_warn(f'{len(repeated)} of {len(set(names))} samples are listed more than once: '
                       f'{first_few(repeated)}', dataset.test_mode, 'list each once',
                       'they are seen as often')


def check_exists(path: str, options: str, is_folder: bool, instead: str = '') -> None:
    """Check that a file or folder of a data set is there.

    Args:
        path: The file or folder.
        options: Where a config sets it, for the message.
        is_folder: Whether it is a folder.
        instead: What else a user can do, for the message.

    Raises:
        ValueError: if it is missing.
    """
    if not (os.path.isdir(path) if is_folder else os.path.isfile(path)):
        raise UserError(f'There is no {"folder " if is_folder else ""}{path}: '
                        f'{how_to_prepare(path)}, {instead}or correct {options} of the dataset.')


class RedrawUnreadable:
    """A mix-in for a data set of MMEngine's kind: one policy for files that cannot be read.

    The loading (:meth:`run_pipeline`; its default is the pipeline, with a transform such as
    :class:`pera_mm.datasets.transforms.load_rgb.LoadRGB`) appends an unreadable file to the
    sample's ``skipped``, a list of (path, reason), and returns None. In training another sample is
    drawn, and ``pera_mm.SkippedImagesHook`` reports the file by the sample's ``worker`` (-1: the
    main process). In a test the file is an error, since a score without it would not be
    comparable. The message counts all such files of the data set and names the first.
    """

    def prepare_data(self, idx: int) -> Any:
        """Load the sample ``idx``, or in training another one.

        Raises:
            ValueError: in a test, if the file cannot be read.
            RuntimeError: if 100 samples drawn one after another cannot be read.
        """
        dataset: Any = self
        skipped: list[tuple[str, str]] = []
        while len(skipped) < MAX_REDRAWS:
            before = len(skipped)
            sample = self._load(idx, skipped)
            if sample is not None or len(skipped) == before:  # a crop without objects is None, too
                return sample
            if dataset.test_mode:
                raise self._error(self._all_unreadable() or skipped)  # none: it can be read again
            idx = dataset._rand_another()
        path, reason = skipped[-1]
        raise RunError(f'{MAX_REDRAWS} samples drawn one after another could not be read, the '
                       f'last for {path} ({reason}): check the data.')

    def run_pipeline(self, sample: dict) -> Any:
        """Load and transform a sample; None where its file was appended to ``skipped``."""
        dataset: Any = self
        return dataset.pipeline(sample)

    def _load(self, idx: int, skipped: list[tuple[str, str]]) -> Any:
        dataset: Any = self
        worker = get_worker_info()
        return self.run_pipeline(dataset.get_data_info(idx) | dict(
            skipped=skipped, worker=-1 if worker is None else worker.id))

    def _all_unreadable(self) -> list[tuple[str, str]]:
        """Load every sample; return path and reason of the files that cannot be read."""
        dataset: Any = self
        skipped: list[tuple[str, str]] = []
        for idx in range(len(dataset)):
            self._load(idx, skipped)
        return skipped

    def _error(self, unreadable: list[tuple[str, str]]) -> UserError:
        dataset: Any = self
        files = first_few([f'{path} ({reason})' for path, reason in unreadable])
        return UserError(f'{len(unreadable)} of {len(dataset)} test samples cannot be read: '
                         f'{files}; a score without them would not be comparable: repair these '
                         'files.')


@DATASETS.register_module()
class LabelledImages(RedrawUnreadable, BaseDataset):
    """A data set of images with one class each, from a list or from a folder per class.

    The images are those of pre-training: any type that is read, in any case, at any depth, without
    hidden files. A class folder has the id of its name in the classes. Without given classes they
    are the folders with images, sorted; ``DataCheckHook`` compares those of training and
    validation.

    Args:
        ann_file: A list of paths with labels, as
            :func:`~pera_mm.datasets.text_lists.read_labels` reads it.
        metainfo: ``dict(classes=(...))``, as of :func:`with_classes`.
        data_root: The folder that ``data_prefix`` and ``ann_file`` are relative to.
        data_prefix: The folder of the class folders, or that the paths of the list are relative to.
        classes: In place of ``metainfo``.
        others: As of MMPretrain's ``BaseDataset``.

    Raises:
        ValueError: if the list or the folder is missing, has no image, or has a label or a folder
            that is not a class; in a test, if a file is missing or cannot be read.
    """

    def __init__(self, ann_file: str = '', metainfo: dict | None = None, data_root: str = '',
                 data_prefix: str | dict = '', classes: Any = None, **others: Any) -> None:
        if classes is not None:
            metainfo = dict(metainfo or {}, classes=classes)
        super().__init__(ann_file=ann_file, metainfo=with_classes(metainfo, needed=False),
                         data_root=data_root, data_prefix=data_prefix, **others)

    def load_data_list(self) -> list[dict]:
        """List the samples.

        Raises:
            ValueError: as the class.
        """
        check_exists(self.ann_file or self.img_prefix, 'data_root and ann_file', not self.ann_file,
                     'split a folder of your own with tools/data/make_splits.py, ')
        found = self._in_the_list() if self.ann_file else self._in_folders()
        gone = {path for path, _ in found if not os.path.exists(path)}
        if missing := sorted(gone):
            fault = (f'{len(missing)} of {len(found)} images of {self.ann_file or self.img_prefix} '
                     f'are missing: {first_few(missing)}')
            mend = 'repair these files, or set data_root to the folder that holds them'
            if any(map(is_not_utf_8, missing)):
                mend = f'their names in the list are not UTF-8, so save it as UTF-8, or {mend}'
            if all(path in gone for path, _ in found):
                raise UserError(f'{fault}; no image is left: {mend}.')
            refuse_or_warn(fault, self.test_mode, mend, 'the others are used')
        return [dict(img_path=path, gt_label=label) for path, label in found if path not in gone]

    def _in_the_list(self) -> list[tuple[str, int]]:
        found = [(path, label) for path, label, _ in
                 read_labels(self.ann_file, self.img_prefix, classes_of(self))]
        refuse_repeated([path for path, _ in found], self)
        return found

    def _in_folders(self) -> list[tuple[str, int]]:
        images = class_folders(self.img_prefix)
        if not images:
            raise UserError(f'{self.img_prefix} has no folder with images: give a folder that has '
                            'one for each class, or a list in ann_file.')
        classes = classes_of(self) or tuple(images)
        self._metainfo['classes'] = classes
        if unknown := sorted(set(images) - set(classes)):
            raise UserError(f'{first_few(unknown)} in {self.img_prefix} are not among the classes '
                            f'({first_few(classes)}): {HOW_TO_NAME}, as their folders are named, '
                            'or move other folders away.')
        if absent := [name for name in classes if name not in images]:
            print_log(f'{self.img_prefix} has no image of {first_few(absent)}.', 'current',
                      logging.WARNING)
        return [(os.path.join(self.img_prefix, path), classes.index(name))
                for name, paths in images.items() for path in paths]
