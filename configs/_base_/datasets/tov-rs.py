# TOV-RS: 1,088,941 images of 600 x 600 px at 1-20 m (Tao et al. 2023). Unpacked or as tar shards,
# checked by
#     python tools/data/prepare.py tov-rs SRC data/tov-rs
_base_ = 'rsrsd-5m.py'
train_dataloader = dict(
    dataset=dict(source=[dict(path='data/tov-rs', index_file='data/tov-rs.txt')]))
