"""The classes of a model's head, of the train set and of the validation set: they must be one list.

A head with too few classes fails in its loss, one with too many trains without a word, and a label
that counts from 1 or that is another class in validation makes every score wrong.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pera_mm.datasets.matching import first_few
from pera_mm.downstream.class_shares import ClassCounts

# The places of heads in the models of MMSegmentation, MMPretrain and MMDetection.
HEADS = ('decode_head', 'auxiliary_head', 'head', 'bbox_head', 'roi_head.bbox_head',
         'roi_head.mask_head')


def heads_of(model: Any) -> dict[str, int]:
    """Find the heads of a model and their numbers of classes.

    Args:
        model: A module, or the dict of a config.

    Returns:
        Place in the model to ``num_classes``.
    """
    found = {}
    for place in HEADS:
        node = model
        for key in place.split('.'):
            node = _child(node, key)
        stages = list(node) if _is_list(node) else [node]
        for stage in stages:
            if isinstance(number := _child(stage, 'num_classes'), int):
                found[place] = number
    return found


def _child(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, Mapping) else getattr(node, key, None)


def _is_list(node: Any) -> bool:
    """Tell the stages of a cascade from one head; a ModuleList has no common base with a list."""
    return hasattr(node, '__iter__') and not isinstance(node, Mapping)


def class_faults(splits: Mapping[str, ClassCounts | None], heads: Mapping[str, int],
                 ) -> Iterator[str]:
    """Yield a sentence for everything in which the classes do not fit.

    Args:
        splits: Name of a split to its labels; None: unknown.
        heads: As of :func:`heads_of`.
    """
    known = {name: counts for name, counts in splits.items() if counts is not None}
    if not known:
        return
    (first, classes), *others = known.items()
    for name, counts in others:
        if classes.is_named and counts.is_named and counts.names != classes.names:
            yield (f'the classes of the {first} set are {first_few(classes.names)}, those of the '
                   f'{name} set {first_few(counts.names)}, and a label is a place in this list: '
                   'give both metainfo=dict(classes=(...)) with the same names in one order.')
    yield from _faults_of_heads(known, heads)
    for name, counts in known.items():
        yield from _too_few(counts, name, is_train=name.startswith('train'))


def _faults_of_heads(splits: Mapping[str, ClassCounts], heads: Mapping[str, int]) -> Iterator[str]:
    named = [counts for counts in splits.values() if counts.is_named]
    largest = max(named or splits.values(), key=lambda counts: len(counts.names))
    number = len(largest.names)
    if not named and number and not any(counts.counts[0] for counts in splits.values()):
        yield (f'none of the {largest.unit} has the label 0, so labels seem to count from 1: write '
               f'them from 0 to {number - 2}; if the first class really has none, name all classes '
               'in metainfo=dict(classes=(...)).')
        return
    for place, classes in heads.items():
        if classes == number:
            continue
        have = f'the data set has {number} ({first_few(largest.names)})' if named else (
            f'the labels of the data are 0 to {number - 1}')
        mend = 'or correct metainfo.classes of the data set' if named else (
            'or, if some classes have no image here, name all of them in metainfo=dict('
            'classes=(...))')
        yield (f'model.{place} has num_classes={classes}, and {have}: set it to {number}, {mend}.')


def _too_few(counts: ClassCounts, split: str, is_train: bool) -> Iterator[str]:
    """Yield a fault if there is one class only; boxes of one class have the background, too."""
    if lacks_second(counts) and (is_train or counts.unit == 'pixels'):
        present = [name for name, count in zip(counts.names, counts.counts) if count]
        files = 'masks' if counts.unit == 'pixels' else 'images'
        found = f'only the class {present[0]}' if present else 'no label'
        yield (f'{counts.seen} of {counts.total} {files} of the {split} set were read and hold '
               f'{found}, so nothing can be learned or scored: check their values, and threshold, '
               'reduce_zero_label and metainfo.classes of the data set.')


def lacks_second(counts: ClassCounts) -> bool:
    """Tell whether pixels or images never show a second class, though there is one."""
    return (counts.unit != 'boxes' and (len(counts.names) > 1 or not counts.is_named)
            and (counts.counts[:-1] > 0).sum() < 2)
