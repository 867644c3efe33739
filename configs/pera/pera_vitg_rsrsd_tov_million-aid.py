"""PerA, ViT-G/16-1024, on the images of the paper's formal pre-training: RSRSD-5m with others.

Source:   section 3.1: TOV-RS and Million-AID were added "to obtain more comprehensive
          representations in higher resolution": 6,775,848 images. Shares are not published; here
          an epoch has every image once. With weight=2, weight=1, weight=1 in the three dicts, for
          example, these are the shares of an epoch of the same length. All else as
          pera_vitg_rsrsd.py.
Target:   as pera_vitg_rsrsd.py.
Hardware: as pera_vitg_rsrsd.py.
Command:  tools/dist_train.sh configs/pera/pera_vitg_rsrsd_tov_million-aid.py 8
"""

_base_ = 'pera_vitg_rsrsd.py'
train_dataloader = dict(
    dataset=dict(source=[
        dict(path='data/rsrsd-5m', index_file='data/rsrsd-5m.txt'),
        dict(path='data/tov-rs', index_file='data/tov-rs.txt'),
        dict(path='data/million-aid', index_file='data/million-aid.txt'),
    ]))
