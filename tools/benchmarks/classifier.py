"""Train a ViT and a linear classifier on labelled images: fine-tuning, and supervised training."""

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import pera_mm  # noqa: F401  before any toolbox: it supplies the operators of mmcv.ops
from pera_mm.errors import UserError
from pera_mm.evaluation.features import LabelledFolder, Split

FINE_TUNING = Path(__file__).resolve().parents[2] / 'configs/scenes/aid_pera_scenes.py'


def classifier_config(vit: dict, cfg: Config, folder: LabelledFolder, split: Split, size: int,
                      epochs: int, seed: int, work_dir: Path) -> Config:
    """Adapt configs/scenes/aid_pera_scenes.py to a ViT and a folder; nothing is validated.

    Args:
        vit: of :func:`probe.vit_config`.
        cfg: of the pre-training, for its mean and deviation.
        folder: the images; ``split``: those to train on, and to score with :func:`outcomes`.
        size: side of the images, px.
        epochs: of the training, of which a tenth warms up.
        seed: of the classifier, the order of the images and their crops.
        work_dir: for the lists of images and the logs; it exists.
    """
    run = Config.fromfile(FINE_TUNING)
    classes = len(folder.classes)
    preprocessor = cfg.model.data_preprocessor
    run.merge_from_dict(dict(
        work_dir=str(work_dir), launcher='none', randomness=dict(seed=seed), log_level='WARNING',
        model=dict(
            data_preprocessor=dict(num_classes=classes, mean=preprocessor.mean,
                                   std=preprocessor.std),
            backbone=dict(vit, _delete_=True, drop_path_rate=0.1),
            head=dict(num_classes=classes, in_channels=vit['arch']['embed_dims'])),
        visualizer=dict(vis_backends=[dict(type='LocalVisBackend')])))
    batch_size = min(run.train_dataloader.batch_size, len(split.train))
    run.train_dataloader.batch_size = batch_size
    set_epochs(run, epochs, len(split.train) // batch_size)
    run.train_dataloader.dataset.pipeline[1].scale = size
    run.val_dataloader.dataset.pipeline[1].scale = (size, size)
    for loader, part, index in ((run.train_dataloader, 'train', split.train),
                                (run.val_dataloader, 'test', split.test)):
        names = work_dir / f'{part}.txt'
        names.write_text(''.join(f'{Path(folder.paths[i]).resolve()} {int(folder.labels[i])}\n'
                                 for i in index))
        loader.dataset.update(data_root='', ann_file=str(names))
    run.test_dataloader = run.val_dataloader
    return run


def set_epochs(run: Config, epochs: int, steps: int) -> None:
    """Train for ``epochs`` of ``steps`` steps; a tenth of them warms up, as in that config.

    Raises:
        ValueError: if that is a single step, which is all warm-up.
    """
    if epochs * steps < 2:
        raise UserError(f'{epochs} epoch(s) of {steps} step(s) are too few to train a classifier: '
                        'take more epochs.')
    run.train_cfg.update(max_epochs=epochs, val_interval=epochs + 1)
    warmup, cosine = run.param_scheduler
    warmup.end = cosine.begin = max(epochs * steps // 10, 1)
    for schedule in (warmup, cosine):
        schedule.update(by_epoch=False, convert_to_iter_based=False)


def outcomes(runner: Runner) -> np.ndarray:
    """Return whether a trained runner is right on each test image, bool ``[M]``."""
    runner.model.eval()
    with torch.no_grad():
        return np.array([int(sample.pred_label) == int(sample.gt_label)
                         for batch in runner.val_loop.dataloader
                         for sample in runner.model.val_step(batch)])
