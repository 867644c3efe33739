"""As dior_faster_rcnn_pera.py with an FPN of 256 channels, the detector that most users know.

FPN, RPN and RoI head are torchvision's, the adapter is the original ViT-Adapter's for detection.

Target:   none in the paper
Hardware: batch 16 in all, as configs/dior_faster_rcnn_pera.py
Memory:   as there about 18 GB (computed), 56 GB without recomputing.
Command:  mim train mmdet configs/detection/dior_faster_rcnn_pera_fpn.py
"""

_base_ = '../dior_faster_rcnn_pera.py'

model = dict(
    backbone=dict(vit_feature='last', deform_ratio=0.5, shared_norm=False),
    # torchvision's fifth map, a pooled copy for the largest anchors, is left out: here each map has
    # anchors of two sizes.
    neck=dict(type='FPN', in_channels=[1024] * 4, out_channels=256, num_outs=4),
    rpn_head=dict(in_channels=256, feat_channels=256),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=256),
        bbox_head=dict(in_channels=256)))
