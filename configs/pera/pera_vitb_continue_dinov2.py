"""Continued pre-training of DINOv2's ViT-B/14 as PerA's ViT-B/16 on your own tiles, 20 epochs.

Source:   ours; the paper starts from random weights. Any public ViT-B that tools/weights/convert.py
          reads will do (docs/weights.md): timm's, Hugging Face's, DINO's, MAE's, CLIP's.
Weights:  load_from: Meta's file as downloaded. Both backbones start from it: LayerScale is folded,
          patches of 14 px are resampled to 16, 37 x 37 positions to 28 x 28; heads, predictor and
          mask token are new. The start of the log says so, and what was left out.
Target:   none; compare a probe on your own scenes before and after.
Hardware: 8 GPUs; batch 24 per GPU gives the paper's 192.
Command:  tools/dist_train.sh configs/pera/pera_vitb_continue_dinov2.py 8 --cfg-options \
              load_from=checkpoints/dinov2_vitb14_pretrain.pth \
              train_dataloader.dataset.source=data/my_tiles
"""

_base_ = 'pera_vitb_rsrsd.py'

load_from = 'checkpoints/dinov2_vitb14_pretrain.pth'
train_dataloader = dict(batch_size=24, dataset=dict(source='data/my_tiles'))

# A fifth of the first run's peak. Warm-up and rise of the temperature have the shares of the run
# that they have in pera_vitb_rsrsd.py, because the heads are new.
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 2  # epochs of warm-up
train_cfg = dict(max_epochs=20)
default_hooks = dict(
    weights=dict(type='pera_mm.ContinueHook'),
    schedule=dict(teacher_temp=dict(warmup_epochs=3)))
