"""Continued pre-training of the released ViT-G on your own tiles, 20 epochs.

Source:   ours; the authors published no such run. The teacher continues where the release stands
          (epoch 42 of 200: temperature .03, momentum .998). The learning rate is a fifth of the
          peak, with a short warm-up because optimizer and center start anew.
Weights:  load_from: the authors' raw file as downloaded, or one of tools/weights/convert.py
          (docs/weights.md). A whole model restores student, teacher, heads and mask token (and the
          center, which the authors' file does not have); a backbone restores the backbones alone.
          The start of the log says which. --resume continues this run and reads no weights anew.
Target:   none; compare a probe on your own scenes before and after.
Hardware: as pera_vitg_rsrsd.py: 192 images a step, 8 GPUs with 24 each. On N GPUs keep them by
          +optim_wrapper.accumulative_counts=8/N, or lower lr with them; a run with another number
          of images a step says so at its start.
Command:  tools/dist_train.sh configs/pera/pera_vitg_continue.py 8 --cfg-options \
              load_from=checkpoints/pera_ViTG161024.params \
              train_dataloader.dataset.source=data/my_tiles
"""

_base_ = 'pera_vitg_rsrsd.py'

load_from = 'checkpoints/pera_ViTG161024.params'
train_dataloader = dict(dataset=dict(source='data/my_tiles'))

optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 2  # epochs of warm-up
train_cfg = dict(max_epochs=20)
default_hooks = dict(
    weights=dict(type='pera_mm.ContinueHook'),
    schedule=dict(
        teacher_temp=dict(start=0.03, end=0.03, warmup_epochs=0),
        momentum=dict(start=0.998, end=1.0)))
