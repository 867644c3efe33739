# Channel statistics, RGB in 0-255 units. The authors' PerA configs have ImageNet's, and
# so have ours; their PerASCD feeds the released ViT-G with the others. docs/weights.md says how to
# find out which suits. A config based on any of ours takes the other set with one line:
#     model = dict(data_preprocessor=_base_.normalization.perascd)
normalization = dict(
    imagenet=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    perascd=dict(mean=[91.4175, 95.3955, 80.4525], std=[37.8165, 32.7165, 30.549]),
    # of public ViTs: most of timm's and Hugging Face's; CLIP's
    half=dict(mean=[127.5] * 3, std=[127.5] * 3),
    clip=dict(mean=[122.7709, 116.7460, 104.0937], std=[68.5005, 66.6322, 70.3232]))
