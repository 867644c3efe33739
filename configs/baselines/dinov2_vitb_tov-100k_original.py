"""DINOv2, ViT-B/16, TOV-100k, 200 epochs, as in the code of DINOv2 (Oquab et al., 2023).

Source:   facebookresearch/dinov2, configs/ssl_default_config.yaml (of ViT-L/16; its ViT-B is
          distilled from a larger one). Size of the global crops (224 there), images and epochs are
          those of the PerA paper.
          Its learning rate depends on the batch: 4e-3 x sqrt(images per step / 1024). Here these
          are 16, on one device; for another number set optim_wrapper.optimizer.lr.
          docs/baselines.md has the other differences.
Target:   none published.
Command:  tools/dist_train.sh configs/baselines/dinov2_vitb_tov-100k_original.py 1
"""

_base_ = ['dinov2_vitb_tov-100k.py', '../_base_/dino_colors.py']
model = dict(
    data_preprocessor=dict(student=dict(_delete_=True, **_base_.dino_colors)),
    backbone=dict(layer_scale_init_value=1e-5),
    patch_projector=None,  # patches share the projector of [cls]
    koleo_on='features')  # [cls] before the projector

crops = dict(
    global_crops=dict(scale=(0.32, 1.0)),
    local_crops=dict(scale=(0.05, 0.32)),
    ratio=(3 / 4, 4 / 3),
    vertical_flip=0.0,
    interpolation='bicubic')
train_dataloader = dict(dataset=dict(pipeline=dict(crops=crops)))

optim_wrapper = dict(
    constructor='pera_mm.LayerDecayConstructor',
    optimizer=dict(lr=4e-3 * (16 / 1024)**0.5, eps=1e-8),
    paramwise_cfg=dict(
        layer_decay_rate=0.9,
        flat_decay_mult=0.0,  # no decay of biases, norms and layer scales
        custom_keys={
            'patch_embed.projection.weight': dict(lr_mult=0.2),
            'patch_embed.projection.bias': dict(lr_mult=0.2, decay_mult=0.0),
            'mask_token': dict(lr_mult=0.9**13),  # counts among the embeddings
        }))
param_scheduler = _base_.param_scheduler
# ends by ratio, for parameters with less learning rate and without decay: 1e-6 and .4
param_scheduler[1] = dict(
    type='CosineAnnealingLR', eta_min_ratio=1e-6 / (4e-3 * (16 / 1024)**0.5), begin=10,
    by_epoch=True, convert_to_iter_based=True)
param_scheduler[2] = dict(
    type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min_ratio=10,
    by_epoch=True, convert_to_iter_based=True)
default_hooks = dict(freeze_last_layer=dict(type='pera_mm.FreezeLastLayerHook', epochs=1))
