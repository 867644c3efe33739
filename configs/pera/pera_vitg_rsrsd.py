"""PerA, ViT-G/16-1024 (505M parameters), RSRSD-5m, 200 epochs: the released model.

Source:   Configs/pera_vitg.yaml of SathShen/PerA; batch 16 per device as there, 192 in the paper.
Target:   AID 20 % 97.13 OA, Potsdam 93.08 mF1, LoveDA 54.02 mIoU, LEVIR-CD 92.34 F1,
          DIOR 75.71 mAP50 (paper, Tables 2-7; the released file is epoch 42 of a resumed run).
Hardware: 8 GPUs (the paper: A100 40G). Activations are recomputed in the backward pass; with
          80 GB per GPU set model.backbone.with_cp=False. A checkpoint is 9.1 GB; while rank 0
          writes one it needs about twice that in host memory.
Command:  tools/dist_train.sh configs/pera/pera_vitg_rsrsd.py 8
"""

_base_ = 'pera_vitb_rsrsd.py'
model = dict(backbone=dict(arch='pera-g', with_cp=True))
default_hooks = dict(
    schedule=dict(
        teacher_temp=dict(start=0.02, end=0.03, warmup_epochs=30),
        momentum=dict(start=0.998, end=1.0)))
