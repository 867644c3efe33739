# RSSCN7, 1,400 real images of 256 px (labels are not read): 43 steps an epoch. Crops have a quarter
# of the paper's side and patches half of it, so that the student still sees enough tokens of each.
_base_ = 'rsrsd-5m.py'
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    pin_memory=False,
    dataset=dict(
        source='data/rsscn7',
        pipeline=dict(
            crops=dict(global_crops=dict(size=112), local_crops=dict(number=4, size=48)),
            mask=dict(patch_size=8))))
