# Million-AID: 1,000,848 images of mostly 256 or 512 px at 0.5-153 m (Long et al. 2021); its labels
# are not used. Unpacked or as tar shards, checked by
#     python tools/data/prepare.py million-aid SRC data/million-aid
_base_ = 'rsrsd-5m.py'
train_dataloader = dict(
    dataset=dict(source=[dict(path='data/million-aid', index_file='data/million-aid.txt')]))
