"""Small MoCo v3 on PerA's two global crops and colors; else small/mocov3.py.

112 px in place of 128, 40 to 100 % of the image in place of 8 to 100, flips both ways, and the
student's colors for one crop and the teacher's for the other. MoCo v3 has no local crops.

Target:   none; it has not been measured.
Command:  python tools/train.py configs/small/mocov3_pera-views.py
"""

_base_ = ['mocov3.py', '../_base_/pera_colors.py']
colors = _base_.pera_colors
model = dict(
    data_preprocessor=dict(colors=[dict(colors.student), dict(colors.teacher)]),
    backbone=dict(img_size=112))
crops = dict(
    global_crops=dict(size=112, scale=(0.4, 1.0)), ratio=(0.75, 1.33), vertical_flip=0.5)
train_dataloader = dict(dataset=dict(pipeline=dict(crops=crops)))
