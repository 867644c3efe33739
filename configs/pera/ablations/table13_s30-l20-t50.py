"""Table 13: student 30 %, learnable 20 %, teacher 50 % of the patches.

Target:   91.4 OA on AID 20 %.
Command:  tools/dist_train.sh configs/pera/ablations/table13_s30-l20-t50.py 1
"""

_base_ = '../pera_vitb_tov-100k.py'
mask = dict(student=0.3, learnable=0.2, teacher=0.5)
train_dataloader = dict(dataset=dict(pipeline=dict(mask=mask)))
