# RSSCN7, 1,400 real images of 400 px (labels are not read): 43 steps an epoch. Crops have a quarter
# of the paper's side.
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='pera_mm.DrawSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='pera_mm.UnlabeledImages',
        source='data/rsscn7',
        pipeline=dict(
            crops=dict(
                type='pera_mm.AlignedCrops',
                global_crops=dict(number=2, size=112, scale=(0.4, 1.0)),
                local_crops=dict(number=4, size=48, scale=(0.05, 0.4)),
                ratio=(0.75, 1.33)),
            mask=dict(
                type='pera_mm.DisjointMask', patch_size=16, student=0.2, learnable=0.2,
                teacher=0.6),
            pack=dict(type='pera_mm.PackCrops'))))
