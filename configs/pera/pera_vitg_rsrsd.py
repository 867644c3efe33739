"""PerA, ViT-G/16-1024 (505M parameters), RSRSD-5m alone, 200 epochs.

The released model saw two more data sets: pera_vitg_rsrsd_tov_million-aid.py.

Source:   Configs/pera_vitg.yaml of SathShen/PerA; 192 images a step as in the paper and in the
          authors' command (8 GPUs with 24 each).
Target:   none published on RSRSD-5m alone.
Hardware: 8 GPUs (the paper: A100 40G). Activations are recomputed in the backward pass; with
          80 GB per GPU set model.backbone.with_cp=False. A checkpoint is 9.1 GB; while rank 0
          writes one it needs about twice that in host memory.
          Other numbers of GPUs: batch_size x GPUs x accumulative_counts stays 192; a run with
          another product says so at its start. On 4 GPUs, for example, +optim_wrapper.
          accumulative_counts=2; on 16, train_dataloader.batch_size=12.
Command:  tools/dist_train.sh configs/pera/pera_vitg_rsrsd.py 8
"""

_base_ = 'pera_vitb_rsrsd.py'
train_dataloader = dict(batch_size=24)
# Only compared with the run's; lr stays as it is. MMEngine scales lr by it if enable=True.
auto_scale_lr = dict(enable=False, base_batch_size=192)
model = dict(backbone=dict(arch='pera-g', with_cp=True))
default_hooks = dict(
    schedule=dict(
        teacher_temp=dict(start=0.02, end=0.03, warmup_epochs=30),
        momentum=dict(start=0.998, end=1.0)))
