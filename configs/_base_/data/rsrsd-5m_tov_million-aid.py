# The three data sets of the paper's formal pre-training (§3.1): 6,775,848 images. In which shares
# is not published: without weights an epoch has every image once. With them, e.g. weight=2,
# weight=1, weight=1 in the three dicts, they are the shares of an epoch that is as long.
_base_ = 'rsrsd-5m.py'
train_dataloader = dict(
    dataset=dict(source=[
        dict(path='data/rsrsd-5m', index_file='data/rsrsd-5m.txt'),
        dict(path='data/tov-rs', index_file='data/tov-rs.txt'),
        dict(path='data/million-aid', index_file='data/million-aid.txt'),
    ]))
