# ViT-Adapter + Faster R-CNN as in section 4.2.4 of the paper. The authors' first code puts
# torchvision's Faster R-CNN on the adapter, without an FPN: the four maps, 1024 channels wide, go
# straight into RPN and RoI head. Its changed anchors were never public. The values of the paper and
# of that code are marked; all others are torchvision's, with a note where MMDetection's usual ones
# differ.
_base_ = '../normalization.py'

default_scope = 'mmdet'
custom_imports = dict(
    imports=['pera_mm', 'pera_mm.downstream.data_check', 'pera_mm.downstream.detection'],
    allow_failed_imports=False)

model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        **_base_.normalization.imagenet,
        bgr_to_rgb=False,  # pera_mm.LoadRGB reads RGB
        pad_size_divisor=32),
    backbone=dict(
        type='pera_mm.ViTAdapter',
        vit=dict(
            type='pera_mm.PerAViT',
            arch='pera-g',
            img_size=512,
            patch_size=16,
            drop_path_rate=0.3,  # paper
            init_cfg=dict(
                type='pera_mm.PretrainedBackbone', checkpoint='checkpoints/pera_vitg.safetensors',
                network='teacher')),
        # the authors' code (SathShen/PerASCD)
        vit_feature='stages',
        deform_ratio=1.0,
        shared_norm=True,
        norm_cfg=dict(type='BN'),
        with_cp=False),
    rpn_head=dict(
        type='pera_mm.ExactRPNHead',
        in_channels=1024,
        feat_channels=1024,
        # Paper: sizes 4 to 512, ratios (height / width) 0.2 to 5. Our reading: the eight powers of
        # two, two on each of the four maps; torchvision's three ratios and the two ends.
        anchor_generator=dict(
            type='AnchorGenerator',
            strides=[4, 8, 16, 32],
            base_sizes=[4, 16, 64, 256],
            scales=[1, 2],
            ratios=[0.2, 0.5, 1.0, 2.0, 5.0]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0, 0, 0, 0], target_stds=[1, 1, 1, 1]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='SmoothL1Loss', beta=1 / 9)),  # MMDetection: L1
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='pera_mm.ExactRoIExtractor',
            # MMDetection: as many samples as a bin is wide, and shifted by half a pixel.
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2, aligned=False),
            out_channels=1024,
            featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=1024,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=20,
            reg_class_agnostic=False,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0, 0, 0, 0],
                target_stds=[.1, .1, .2, .2]),  # torchvision writes 1/std: 10, 10, 5, 5
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
            loss_bbox=dict(type='SmoothL1Loss', beta=1 / 9))),  # MMDetection: L1
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                # The best anchor of an object is positive however little it overlaps (MMDetection:
                # from 0.3). Not 0, or anchors that do not overlap would be positive, too.
                min_pos_iou=1e-6,
                match_low_quality=True,
                ignore_iof_thr=-1),
            sampler=dict(
                type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1,
                add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False),
        rpn_proposal=dict(
            nms_pre=2000,
            max_per_img=2000,  # MMDetection: 1000
            nms=dict(type='nms', iou_threshold=0.8),  # paper
            min_bbox_size=1e-3),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1),
            sampler=dict(
                type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1,
                add_gt_as_proposals=True),
            pos_weight=-1,
            debug=False)),
    test_cfg=dict(
        rpn=dict(
            nms_pre=1000,
            max_per_img=1000,
            nms=dict(type='nms', iou_threshold=0.8),  # paper
            min_bbox_size=1e-3),
        rcnn=dict(
            score_thr=0.01,  # paper
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=200)))  # paper
