"""PerA, ViT-G/16-1024, with weights, gradients and optimizer state sharded over the GPUs.

Student, teacher, gradients and AdamW take 11.4 GB on every device. Sharded, they take that divided
by the number of devices, plus one layer at a time. The checkpoint is one file, with the names of
any other run.

Command:  tools/dist_train.sh configs/pera/pera_vitg_rsrsd_fsdp.py 8
"""

_base_ = 'pera_vitg_rsrsd.py'
runner_type = 'FlexibleRunner'
strategy = dict(type='pera_mm.engine.strategy.ShardedStrategy')
