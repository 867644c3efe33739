"""PerA, ViT-G/16-1024, RSRSD-5m, TOV-RS and Million-AID: the paper's formal pre-training.

This made the released model.

Source:   section 3.1: TOV-RS and Million-AID were added "to obtain more comprehensive
          representations in higher resolution": 6,775,848 images. Shares are not published; here
          an epoch has every image once. With weight=2, weight=1, weight=1 in the three dicts, for
          example, these are the shares of an epoch of the same length. All else as
          pera_vitg_rsrsd.py.
Target:   AID 20 % 97.13 OA, Potsdam 93.08 mF1, LoveDA 54.02 mIoU, LEVIR-CD 92.34 F1,
          DIOR 75.71 mAP50 (paper, Tables 2-7; the released file is epoch 42 of a resumed run).
Hardware: as pera_vitg_rsrsd.py: 192 images a step, 8 GPUs with 24 each.
Command:  tools/dist_train.sh configs/pera/pera_vitg_rsrsd_tov_million-aid.py 8
"""

_base_ = 'pera_vitg_rsrsd.py'
train_dataloader = dict(
    dataset=dict(source=[
        dict(path='data/rsrsd-5m', index_file='data/rsrsd-5m.txt'),
        dict(path='data/tov-rs', index_file='data/tov-rs.txt'),
        dict(path='data/million-aid', index_file='data/million-aid.txt'),
    ]))
