# RSRSD-5m: 4,686,059 tiles of 512 x 512 px at 0.3-10 m, checked by
#     python tools/data/prepare.py rsrsd-5m SRC data/rsrsd-5m
# `source` is the one line to change for other images: a folder of any depth, a text list, tar
# shards, an LMDB, or a list of these with weights. The index file lists the images of a folder. If
# prepare.py has not written it, the first start does; later ones map it in a second (delete it
# after adding images). Packed images have their own index.
train_dataloader = dict(
    batch_size=16,  # per device
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='pera_mm.DrawSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='pera_mm.UnlabeledImages',
        source=[dict(path='data/rsrsd-5m', index_file='data/rsrsd-5m.txt')],
        # Keyed by name, as default_hooks, so that a config changes one step and repeats no other.
        pipeline=dict(
            crops=dict(
                type='pera_mm.AlignedCrops',
                global_crops=dict(number=2, size=448, scale=(0.4, 1.0)),
                local_crops=dict(number=8, size=96, scale=(0.05, 0.4)),
                ratio=(0.75, 1.33)),
            mask=dict(
                type='pera_mm.DisjointMask', patch_size=16, student=0.2, learnable=0.2,
                teacher=0.6),
            pack=dict(type='pera_mm.PackCrops'))))
