"""Score a pre-trained ViT on scenes: kNN, linear, and a short fine-tuning.

    python tools/benchmarks/probe.py CONFIG [CHECKPOINT] --data FOLDER --json FILE

CONFIG is that of the pre-training; only its ViT is used. CHECKPOINT is a file, or a work folder for
its last checkpoint. Without it the ViT starts at random. The classifiers learn from half of each
class of FOLDER (one folder of images per class) and are tested on the other half, the same for all.
In the fine-tuning (configs/scenes/aid_pera_scenes.py on these images) the last epoch counts.
"""

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmpretrain.registry import MODELS

import pera_mm  # noqa: F401  activates the bridges
from pera_mm.evaluation.features import (
    LabelledFolder,
    Split,
    extract_features,
    read_labelled_folder,
    stratified_split,
)
from pera_mm.evaluation.knn import knn_accuracy
from pera_mm.evaluation.linear_probe import linear_accuracy
from pera_mm.files import write_whole
from pera_mm.launch import build_runner, errors_in_one_sentence
from pera_mm.models.preprocessor import CropPreprocessor

FINE_TUNING = Path(__file__).resolve().parents[2] / 'configs/scenes/aid_pera_scenes.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path, nargs='?')
    parser.add_argument('--data', required=True)
    parser.add_argument('--size', type=int, default=112, help='side of the images, px')
    parser.add_argument('--epochs', type=int, default=10, help='of the fine-tuning; 0: none')
    parser.add_argument('--seed', type=int, default=10,
                        help='of the random weights and the fine-tuning')
    parser.add_argument('--json', type=Path, required=True, help='where the scores go, in percent')
    return parser.parse_args()


def vit_config(cfg: Config, checkpoint: Path | None) -> dict:
    """Return a pre-training's ViT as a dense PerAViT for [cls], filled from ``checkpoint``."""
    vit = cfg.model.backbone
    arch = vit.get('arch', 'base')
    shape = MODELS.get(vit.type).arch_zoo[arch] if isinstance(arch, str) else arch
    names = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
    same = {key: vit[key] for key in ('img_size', 'patch_size', 'norm_cfg') if key in vit}
    start = None if checkpoint is None else dict(
        type='pera_mm.PretrainedBackbone', checkpoint=str(checkpoint))
    return dict(type='pera_mm.PerAViT', arch={name: shape[name] for name in names},
                out_type='cls_token', init_cfg=start, **same)


def latest(checkpoint: Path | None) -> Path | None:
    """Return a file as it is, or the last checkpoint of a work folder."""
    if checkpoint is None or not checkpoint.is_dir():
        return checkpoint
    pointer = checkpoint / 'last_checkpoint'
    if not pointer.exists():
        raise SystemExit(f'There is no checkpoint in {checkpoint}: train first.')
    return checkpoint / Path(pointer.read_text()).name  # the folder may have moved


def frozen_scores(vit: dict, cfg: Config, folder: LabelledFolder, split: Split,
                  size: int) -> dict[str, float]:
    """Score kNN (k = 10) and a linear classifier on the frozen [cls], in percent."""
    backbone = MODELS.build(vit)
    backbone.init_weights()
    backbone.eval()
    standard = {key: cfg.model.data_preprocessor[key] for key in ('mean', 'std')}
    model = SimpleNamespace(data_preprocessor=CropPreprocessor(**standard))
    features, readable = extract_features(model, folder.paths, size,
                                          encode=lambda images: backbone(images)[-1])
    train, test = (index[readable[index]] for index in split)
    parts = features[train], folder.labels[train], features[test], folder.labels[test]
    return dict(knn=knn_accuracy(*parts, k=10), linear=linear_accuracy(*parts))


def fine_tuned_accuracy(vit: dict, cfg: Config, folder: LabelledFolder, split: Split, size: int,
                        epochs: int, seed: int, work_dir: str) -> float:
    """Train the ViT and a linear classifier briefly and return the accuracy in percent."""
    run = Config.fromfile(FINE_TUNING)
    classes = len(folder.classes)
    preprocessor = cfg.model.data_preprocessor
    options = dict(
        work_dir=work_dir, launcher='none', randomness=dict(seed=seed), log_level='WARNING',
        train_cfg=dict(max_epochs=epochs, val_interval=epochs),
        model=dict(
            data_preprocessor=dict(num_classes=classes, mean=preprocessor.mean,
                                   std=preprocessor.std),
            backbone=dict(vit, _delete_=True, drop_path_rate=0.1),
            head=dict(num_classes=classes, in_channels=vit['arch']['embed_dims'])),
        default_hooks=dict(checkpoint=None),
        visualizer=dict(vis_backends=[dict(type='LocalVisBackend')]))
    run.merge_from_dict(options)
    batch_size = min(run.train_dataloader.batch_size, len(split.train))
    run.train_dataloader.batch_size = batch_size
    # The warm-up is a tenth of the steps, as in that config.
    warmup, cosine = run.param_scheduler
    warmup.end = cosine.begin = max(epochs * (len(split.train) // batch_size) // 10, 1)
    for schedule in (warmup, cosine):
        schedule.update(by_epoch=False, convert_to_iter_based=False)
    run.train_dataloader.dataset.pipeline[1].scale = size
    run.val_dataloader.dataset.pipeline[1].scale = (size, size)
    for loader, part, index in ((run.train_dataloader, 'train', split.train),
                                (run.val_dataloader, 'test', split.test)):
        names = Path(work_dir) / f'{part}.txt'
        names.write_text(''.join(f'{Path(folder.paths[i]).resolve()} {int(folder.labels[i])}\n'
                                 for i in index))
        loader.dataset.update(data_root='', ann_file=str(names))
    run.test_dataloader = run.val_dataloader
    runner = build_runner(run)
    runner.train()
    return float(runner.message_hub.get_scalar('val/accuracy/top1').current())


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    cfg = Config.fromfile(args.config)
    folder = read_labelled_folder(args.data)
    split = stratified_split(folder.labels)
    vit = vit_config(cfg, latest(args.checkpoint))
    set_random_seed(args.seed)
    init_default_scope('mmpretrain')
    scores = frozen_scores(vit, cfg, folder, split, args.size)
    if args.epochs:
        with tempfile.TemporaryDirectory() as work_dir:
            scores['finetune'] = fine_tuned_accuracy(vit, cfg, folder, split, args.size,
                                                     args.epochs, args.seed, work_dir)
    print(scores)
    write_whole(args.json, json.dumps(scores).encode())


if __name__ == '__main__':
    with errors_in_one_sentence():
        main()
