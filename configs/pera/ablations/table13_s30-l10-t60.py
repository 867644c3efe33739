"""Table 13: student 30 %, learnable 10 %, teacher 60 % of the patches.

Target:   90.7 OA on AID 20 %.
Command:  tools/dist_train.sh configs/pera/ablations/table13_s30-l10-t60.py 1
"""

_base_ = '../pera_vitb_tov-100k.py'
mask = dict(student=0.3, learnable=0.1, teacher=0.6)
train_dataloader = dict(dataset=dict(pipeline=dict(mask=mask)))
