"""DINO, ViT-B/16, TOV-100k, 200 epochs, as in the code of DINO (Caron et al., 2021).

Source:   facebookresearch/dino, main_dino.py and the published arguments of ViT-B/16. Size of the
          global crops (224 there), images and epochs (400 there) are those of the PerA paper.
          Its learning rate depends on the batch: 7.5e-4 x images per step / 256. Here these are 16,
          on one device; for another number set optim_wrapper.optimizer.lr.
          docs/baselines.md has the other differences.
Target:   none published.
Command:  tools/dist_train.sh configs/baselines/dino_vitb_tov-100k_original.py 1
"""

_base_ = ['dino_vitb_tov-100k.py', '../_base_/dino_colors.py']
model = dict(
    data_preprocessor=dict(student=dict(_delete_=True, **_base_.dino_colors)),
    backbone=dict(qkv_bias=True, norm_cfg=dict(eps=1e-6)))

crops = dict(
    global_crops=dict(scale=(0.25, 1.0)),
    local_crops=dict(number=10, scale=(0.05, 0.25)),
    ratio=(3 / 4, 4 / 3),
    vertical_flip=0.0,
    interpolation='bicubic')
train_dataloader = dict(dataset=dict(pipeline=dict(crops=crops)))

optim_wrapper = dict(
    optimizer=dict(lr=7.5e-4 * 16 / 256, eps=1e-8),
    paramwise_cfg=dict(flat_decay_mult=0.0),  # no decay of biases and norms
    clip_grad=dict(max_norm=0.3))  # of all gradients together; DINO clips each tensor by itself
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(eta_min=2e-6)
# .04 to .4, by ratio: what does not decay must not begin to
param_scheduler[2] = dict(
    type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min_ratio=10,
    by_epoch=True, convert_to_iter_based=True)
default_hooks = dict(
    schedule=dict(teacher_temp=dict(start=0.04, end=0.07, warmup_epochs=50)),
    freeze_last_layer=dict(type='pera_mm.FreezeLastLayerHook', epochs=3))
