"""PerA, ViT-G/16-1024, on the images of the paper's formal pre-training: RSRSD-5m with others.

Source:   section 3.1: TOV-RS and Million-AID were added "to obtain more comprehensive
          representations in higher resolution". Shares are not published; here every image has
          its turn once an epoch. Everything else as pera_vitg_rsrsd.py.
Target:   as pera_vitg_rsrsd.py.
Hardware: as pera_vitg_rsrsd.py.
Command:  tools/dist_train.sh configs/pera/pera_vitg_rsrsd_tov_million-aid.py 8
"""

_base_ = [
    '../_base_/models/pera_vit-b.py', '../_base_/data/rsrsd-5m_tov_million-aid.py',
    '../_base_/schedules/pera_200e.py', '../_base_/runtime.py'
]
model = dict(backbone=dict(arch='pera-g', with_cp=True))
default_hooks = dict(
    schedule=dict(
        teacher_temp=dict(start=0.02, end=0.03, warmup_epochs=30),
        momentum=dict(start=0.998, end=1.0)))
