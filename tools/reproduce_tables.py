"""What reproduce.py runs: the paper's Tables 2 to 13, row by row, and each at a small scale."""

from typing import NamedTuple

EPOCHS, IMAGES, BATCH = 200, 100_000, 16  # of the pre-trainings of Tables 8, 9 and 11 to 13
FINE_TUNED = 'configs/classification/aid_tr20_pera_vitb.py'
CLASSIFIER, DENSE = 'model.backbone', 'model.backbone.vit'  # the ViT in a model of each kind


class Data(NamedTuple):
    """Files, and how they are made; ``{root}`` is the work folder."""

    path: str  # exists when they are there
    command: str
    source: 'Data | None' = None  # what the command reads
    given: bool = False  # by the user: the command needs what only the user has
    marked: bool = False  # the path is a mark that reproduce.py leaves after the command


class Training(NamedTuple):
    """A training with the settings of a config."""

    config: str
    last: str  # the name of its last checkpoint
    batch: int  # images of a step, over all GPUs
    data: tuple[Data, ...]
    options: tuple[str, ...] = ()
    name: str = ''  # of its work folder; the config's by default
    images_per_second: float | None = None  # the paper's Table 10, on one A100

    @property
    def folder(self) -> str:
        return self.name or self.config.rpartition('/')[2].removesuffix('.py')

    @property
    def gpu_hours(self) -> float | None:
        """Compute the hours of 200 epochs of 100,000 images; None without a published speed."""
        speed = self.images_per_second
        return None if speed is None else EPOCHS * IMAGES / speed / 3600


class Run(NamedTuple):
    """A pre-training, or None for the released weights; a fine-tuning from it; its score."""

    start: Training | None
    tuning: Training
    vit: str
    score: str  # a key of the test's metrics
    factor: float = 1.  # from that metric to the table's
    submission: str = ''  # a config that predicts for a server


class Row(NamedTuple):
    """A row of a table of the paper."""

    name: str
    paper: tuple[float, ...]  # a number per column
    full: Run | None
    small: Run | None  # None: there is no small twin
    note: str = ''


class Costs(NamedTuple):
    """One measurement of all rows of Table 10."""

    configs: tuple[str, ...]  # of the rows
    options: tuple[str, ...]


class Table(NamedTuple):
    """A table of the paper."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    costs: dict[bool, Costs] | None = None  # Table 10's, in full and small


# -- data --------------------------------------------------------------------------------------


def prepared(name: str) -> Data:
    return Data(f'data/{name}/verification.txt',
                f'tools/data/prepare.py {name} DOWNLOADS data/{name}', given=True)


def subset(name: str) -> Data:
    return Data(f'data/{name.removesuffix("-5m")}-100k.txt',
                f'tools/data/prepare.py {name} DOWNLOADS data/{name} --subset {IMAGES}', given=True)


def scenes(kind: str, count: int, size: int) -> Data:
    """Draw the scenes of the small scale, fewer than those of configs/scenes."""
    folder = f'{{root}}/data/{kind}'
    return Data(f'{folder}.drawn', f'tools/data/make_scenes.py {folder} {kind} {count} '
                                   f'--size {size}', marked=True)


def scene_split(percent: int) -> Data:
    folder = '{root}/data/classification'
    stem = f'{folder}/splits/tr{percent}'
    return Data(f'{stem}_train.txt', f'tools/data/make_splits.py {folder} {stem} '
                                     f'--share {percent / 100}', LABELLED_SCENES)


TOV_100K, RSRSD_100K = subset('tov-rs'), subset('rsrsd-5m')
RELEASED = Data(
    'checkpoints/pera_vitg.safetensors',
    'tools/weights/convert.py checkpoints/pera_ViTG161024.params '
    'checkpoints/pera_vitg.safetensors --to backbone',
    Data('checkpoints/pera_ViTG161024.params', 'download it', given=True))
UNLABELED_SCENES = scenes('unlabeled', 64, 128)
LABELLED_SCENES = scenes('classification', 150, 128)

# -- trainings ---------------------------------------------------------------------------------


def pretraining(config: str, data: Data = TOV_100K,
                images_per_second: float | None = None) -> Training:
    return Training(f'configs/{config}.py', f'iter_{EPOCHS * IMAGES // BATCH}.pth', BATCH, (data, ),
                    images_per_second=images_per_second)


def small_pretraining(config: str, *options: str, name: str = '') -> Training:
    """Plan a pre-training of configs/small on drawn scenes: 16 steps in eight epochs."""
    source = 'train_dataloader.dataset.source={root}/data/unlabeled'
    return Training(f'configs/small/{config}.py', 'iter_16.pth', 32, (UNLABELED_SCENES, ),
                    (source, *options), name)


def small_patches(side: int, *options: str) -> Training:
    return small_pretraining(
        'pera', f'model.backbone.patch_size={side}',
        f'train_dataloader.dataset.pipeline.mask.patch_size={side}', *options,
        name=f'pera_patch-{side}')


PERA = pretraining('pera/pera_vitb_tov-100k', images_per_second=112.69)
PERA_RSRSD = pretraining('pera/pera_vitb_rsrsd-100k', RSRSD_100K, 112.69)
DINO = pretraining('baselines/dino_vitb_tov-100k', images_per_second=33.90)
DINOV2 = pretraining('baselines/dinov2_vitb_tov-100k', images_per_second=69.28)
DINOV2_RSRSD = pretraining('baselines/dinov2_vitb_rsrsd-100k', RSRSD_100K, 69.28)
MAE = pretraining('baselines/mae_vitb_tov-100k')
MOCOV3 = pretraining('baselines/mocov3_vitb_tov-100k', images_per_second=50.72)
SMALL_PERA = small_pretraining('pera')
SMALL_ARCH = 'demo'  # of configs/small; that of the twins, and of make demo, is 'mini'


def classified(start: Training, config: str = FINE_TUNED) -> Run:
    """Plan the fine-tuning of a ViT-B on AID, 20 % for training."""
    tuning = Training(config, 'epoch_200.pth', 16, (prepared('aid'), ),
                      name=f'{start.folder}_aid-tr20')
    return Run(start, tuning, CLASSIFIER, 'accuracy/top1')


def small_classified(start: Training, *options: str, percent: int = 20) -> Run:
    split = scene_split(percent)
    folder = '{root}/data/classification'
    where = [f'{part}_dataloader.dataset.{key}' for part in ('train', 'val', 'test')
             for key in ('data_root', 'ann_file')]
    which = [folder if key.endswith('root') else
             f'splits/tr{percent}_{"train" if key.startswith("train") else "test"}.txt'
             for key in where]
    data = tuple(f'{key}={value}' for key, value in zip(where, which))
    tuning = Training('configs/scenes/aid_pera_scenes.py', 'epoch_20.pth', 16, (split, ),
                      (*data, f'{CLASSIFIER}.arch={SMALL_ARCH}', *options),
                      f'{start.folder}_aid-tr{percent}')
    return Run(start, tuning, CLASSIFIER, 'accuracy/top1')


def released(config: str, data: str, epochs: int, batch: int, score: str, vit: str = DENSE,
             factor: float = 1., submission: str = '') -> Run:
    """Plan the fine-tuning of the released ViT-G."""
    tuning = Training(f'configs/{config}.py', f'epoch_{epochs}.pth', batch,
                      (RELEASED, prepared(data)))
    return Run(None, tuning, vit, score, factor, submission)


def small_dense(config: str, data: Data, epochs: int, batch: int, score: str,
                factor: float = 1.) -> Run:
    """Plan the fine-tuning of a twin of configs/scenes from the small PerA."""
    folder = data.path.removesuffix('.drawn')
    options = tuple(f'{part}_dataloader.dataset.data_root={folder}'
                    for part in ('train', 'val', 'test'))
    tuning = Training(f'configs/scenes/{config}.py', f'epoch_{epochs}.pth', batch, (data, ),
                      (*options, f'{DENSE}.arch={SMALL_ARCH}'))
    return Run(SMALL_PERA, tuning, DENSE, score, factor)


def ablation(name: str) -> Run:
    return classified(pretraining(f'pera/ablations/{name}'))


def small_ablation(name: str) -> Run:
    return small_classified(small_pretraining(name))


# -- tables ------------------------------------------------------------------------------------

OA = ('OA on AID 20 %', )
SMALL_NORM = ('+model.backbone.norm_cfg.type=LN', '+model.backbone.norm_cfg.eps=1e-5')
SEGMENTS = scenes('segmentation', 40, 256)
PERA_ROW = classified(PERA)
SMALL_PERA_ROW = small_classified(SMALL_PERA)
DINOV2_ROW = classified(DINOV2)
SMALL_DINOV2_ROW = small_classified(small_pretraining('dinov2'))
SAME = 'the training of the row 20 % / 20 % / 60 % of Table 13, where the paper has 91.9'

TABLES = {table.number: table for table in (
    Table(2, 'The released ViT-G on AID', OA, (
        Row('PerA', (97.13, ), released('aid_tr20_pera', 'aid', 200, 16, 'accuracy/top1',
                                        CLASSIFIER), SMALL_PERA_ROW), )),
    Table(3, 'The released ViT-G on UC Merced', ('OA', ), (
        Row('50 % for training', (99.71, ),
            released('classification/ucm_tr50_pera', 'ucm', 200, 16, 'accuracy/top1', CLASSIFIER),
            small_classified(SMALL_PERA, percent=50)),
        Row('80 % for training', (100.0, ),
            released('ucm_tr80_pera', 'ucm', 200, 16, 'accuracy/top1', CLASSIFIER),
            small_classified(SMALL_PERA, percent=80)))),
    Table(4, 'The released ViT-G on Potsdam', ('mF1', ), (
        Row('PerA', (93.08, ),
            released('potsdam_upernet_pera', 'potsdam', 200, 8, '6-class/mF1'),
            small_dense('potsdam_upernet_pera_scenes', SEGMENTS, 14, 8, '7-class/mF1')), )),
    Table(5, 'The released ViT-G on LoveDA', ('mIoU', ), (
        Row('PerA', (54.02, ),
            released('loveda_upernet_pera', 'loveda', 200, 8, '7-class/mIoU',
                     submission='configs/segmentation/loveda_upernet_pera_submission.py'),
            small_dense('loveda_upernet_pera_scenes', SEGMENTS, 14, 8, '7-class/mIoU'),
            "ours is of the validation part; the test server's, which the paper has, comes for "
            'work_dirs/loveda_submission.zip'), )),
    Table(6, 'The released ViT-G on LEVIR-CD', ('F1', ), (
        Row('PerA', (92.34, ), released('levircd_bit_pera', 'levircd', 500, 8, 'change/F1'),
            small_dense('levircd_bit_pera_scenes', scenes('change', 80, 256), 8, 8,
                        'change/F1')), )),
    Table(7, 'The released ViT-G on DIOR', ('mAP50', ), (
        Row('PerA', (75.71, ),
            released('dior_faster_rcnn_pera', 'dior', 100, 16, 'coco101/mAP50', factor=100.),
            small_dense('dior_faster_rcnn_pera_scenes', scenes('detection', 40, 160), 2, 2,
                        'coco101/mAP50', factor=100.)), )),
    Table(8, 'Curated and uncurated images, ViT-B', OA, (
        Row('PerA, TOV-100k', (90.1, ), PERA_ROW, SMALL_PERA_ROW, SAME),
        Row('PerA, RSRSD-100k', (90.0, ), classified(PERA_RSRSD), None),
        Row('DINOv2, TOV-100k', (82.3, ), DINOV2_ROW, SMALL_DINOV2_ROW),
        Row('DINOv2, RSRSD-100k', (79.3, ), classified(DINOV2_RSRSD), None))),
    Table(9, 'Methods, ViT-B, TOV-100k', OA, (
        Row('DINO', (80.1, ),
            classified(DINO, 'configs/classification/aid_tr20_dino-mae_vitb.py'),
            small_classified(small_pretraining('dino'), *SMALL_NORM)),
        Row('MAE', (84.9, ),
            classified(MAE, 'configs/classification/aid_tr20_dino-mae_vitb.py'),
            small_classified(small_pretraining('mae'))),
        Row('MoCo v3', (69.2, ), classified(MOCOV3),
            small_classified(small_pretraining('mocov3'))),
        Row('DINOv2', (82.3, ), DINOV2_ROW, SMALL_DINOV2_ROW),
        Row('PerA', (90.1, ), PERA_ROW, SMALL_PERA_ROW, SAME))),
    Table(10, 'Cost of a training step, ViT-B, batch 16, 512 px, one GPU',
          ('images/s', 'GFLOPs', 'minutes of an epoch', 'GB of GPU memory'), (
              Row('DINO', (33.90, 1177.58, 49.25, 24.82), None, None),
              Row('MoCo v3', (50.72, 351.05, 32.92, 11.55), None, None),
              Row('DINOv2', (69.28, 1249.93, 24.93, 26.16), None, None),
              Row('PerA', (112.69, 146.85, 14.82, 6.64), None, None)),
          {False: Costs((DINO.config, MOCOV3.config, DINOV2.config, PERA.config),
                        ('--batch-size', '16', '--image-size', '512', '--dtype', 'bf16')),
           True: Costs(tuple(f'configs/small/{name}.py'
                             for name in ('dino', 'mocov3', 'dinov2', 'pera')),
                       ('--batch-size', '4', '--image-size', '128', '--steps', '1',
                        '--repeats', '1'))}),
    Table(11, 'Components, ViT-B, TOV-100k', OA, (
        Row('DINOv2, iBOT', (81.4, ), DINOV2_ROW, SMALL_DINOV2_ROW),
        Row('SA', (75.7, ), ablation('table11_sa'), small_ablation('table11_sa')),
        Row('SA + DM', (84.9, ), ablation('table11_sa-dm'), small_ablation('table11_sa-dm')),
        Row('DM + PP', (89.6, ), ablation('table11_dm-pp'), small_ablation('table11_dm-pp')),
        Row('SA + DM + PP', (90.1, ), PERA_ROW, SMALL_PERA_ROW, SAME))),
    Table(12, 'Patch sizes, PerA, ViT-B, TOV-100k', OA, (
        Row('16', (90.1, ), PERA_ROW, SMALL_PERA_ROW, SAME),
        Row('14', (90.5, ),
            classified(pretraining('pera/ablations/table12_patch-14'),
                       'configs/classification/aid_tr20_pera_vitb_patch-14.py'),
            small_classified(small_patches(
                7, 'train_dataloader.dataset.pipeline.crops.local_crops.size=49'),
                'model.backbone.patch_size=7')),
        Row('8', (89.3, ),
            classified(pretraining('pera/ablations/table12_patch-8'),
                       'configs/classification/aid_tr20_pera_vitb_patch-8.py'),
            small_classified(small_patches(4), 'model.backbone.patch_size=4')))),
    Table(13, 'Mask ratios student / learnable / teacher, PerA, ViT-B, TOV-100k', OA, (
        Row('30 % / 20 % / 50 %', (91.4, ), ablation('table13_s30-l20-t50'),
            small_ablation('table13_s30-l20-t50')),
        Row('20 % / 30 % / 50 %', (91.9, ), ablation('table13_s20-l30-t50'),
            small_ablation('table13_s20-l30-t50')),
        Row('20 % / 20 % / 60 %', (91.9, ), PERA_ROW, SMALL_PERA_ROW,
            'the training of PerA in Tables 8, 9, 11 and 12, where the paper has 90.1'),
        Row('30 % / 10 % / 60 %', (90.7, ), ablation('table13_s30-l10-t60'),
            small_ablation('table13_s30-l10-t60')))),
)}
