"""PerA, ViT-G/16-1024, gradients and optimizer state sharded by DeepSpeed (ZeRO stage 2).

Needs `pip install deepspeed==0.17.6` (0.19 does not work with MMEngine 0.10.7) and a C++ compiler,
with which DeepSpeed builds its operators at the first run. This strategy is proved on two CPU
processes by tests/engine/test_deepspeed.py: training, a kill and an exact resume in bfloat16
autocast, and equality with DDP in float32. It has not been run on a GPU. A checkpoint is a folder,
which only this strategy resumes; pera_vitg_rsrsd_fsdp.py does the same with one file.

Stage 3 would give only shards to the moving average of the teacher, and DeepSpeed's own bf16 mode
would round the teacher's small updates away; hence stage 2 and autocast.

Command:  tools/dist_train.sh configs/pera/pera_vitg_rsrsd_deepspeed.py 8
"""

_base_ = 'pera_vitg_rsrsd.py'
runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    gradient_clipping=3.0,
    zero_optimization=dict(stage=2),
    config=dict(torch_autocast=dict(enabled=True, dtype='bfloat16')))
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    constructor='pera_mm.TrainedOnlyConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=2e-5, weight_decay=0.04))
