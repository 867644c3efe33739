"""Table 13: student 20 %, learnable 30 %, teacher 50 % of the patches.

Target:   91.9 OA on AID 20 %.
Command:  tools/dist_train.sh configs/pera/ablations/table13_s20-l30-t50.py 1
"""

_base_ = '../pera_vitb_tov-100k.py'
mask = dict(student=0.2, learnable=0.3, teacher=0.5)
train_dataloader = dict(dataset=dict(pipeline=dict(mask=mask)))
