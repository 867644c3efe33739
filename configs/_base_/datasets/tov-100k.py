# 100,000 random images of TOV-RS, the paper's TOV-100k. Its own list was not published; one is
# drawn, the same for the same seed, by
#     python tools/data/prepare.py tov-rs SRC data/tov-rs --subset 100000
_base_ = 'rsrsd-5m.py'
train_dataloader = dict(dataset=dict(source='data/tov-rs-100k.txt'))
