# Two sets of channel statistics, RGB in 0-255 units. The authors' PerA configs have ImageNet's, and
# so have ours; their PerASCD feeds the released ViT-G with the others. docs/weights.md says how to
# find out which suits. A config based on any of ours takes the other set with one line:
#     model = dict(data_preprocessor=_base_.normalization.perascd)
normalization = dict(
    imagenet=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    perascd=dict(mean=[91.4175, 95.3955, 80.4525], std=[37.8165, 32.7165, 30.549]))
