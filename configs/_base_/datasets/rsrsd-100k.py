# 100,000 random images of RSRSD-5m, as in Table 8. The paper's own list was not published; one is
# drawn, the same for the same seed, by
#     python tools/data/prepare.py rsrsd-5m SRC data/rsrsd-5m --subset 100000
_base_ = 'rsrsd-5m.py'
train_dataloader = dict(dataset=dict(source='data/rsrsd-100k.txt'))
