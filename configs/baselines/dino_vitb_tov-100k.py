"""DINO, ViT-B/16, TOV-100k, 200 epochs, as in the PerA authors' repository.

Source:   Configs/dino_vitb.yaml of its first commit and the code it ran; docs/baselines.md has the
          differences from DINO itself.
Target:   AID, 20 % for training, fine-tuned: 80.1 OA (paper, Table 9).
Hardware: the paper's Table 10: 33.90 images/s and 24.82 GB at batch 16 on one A100 40G.
Command:  tools/dist_train.sh configs/baselines/dino_vitb_tov-100k.py 1
"""

_base_ = [
    '../_base_/models/dino_vit-b.py', '../_base_/datasets/tov-100k.py',
    '../_base_/schedules/pera_200e.py', '../_base_/runtime.py'
]

train_dataloader = dict(dataset=dict(pipeline=dict(mask=dict(disjoint=False))))

# One parameter group: biases and norms decay too. The learning rate ignores the batch size.
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=10)  # 10 epochs of warm-up, then a half cosine to 1e-6
param_scheduler[1].update(begin=10)
param_scheduler[2].update(eta_min=0.4)  # of the weight decay
default_hooks = dict(
    schedule=dict(
        teacher_temp=dict(start=0.04, end=0.04, warmup_epochs=0),
        momentum=dict(start=0.996, end=1.0)))
