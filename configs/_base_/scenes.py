# The twins on drawn scenes: the paper's configs made small, for minutes on two cores. They start
# from the teacher that `make demo` leaves; tools/data/make_scenes.py draws the scenes.
demo_vit = dict(
    arch='mini', patch_size=8, drop_path_rate=0.1, sine_positions=0.25,
    mimetic=dict(query_key=1.0, value_output=0.2),  # for a run from random weights
    init_cfg=dict(checkpoint='work_dirs/demo/iter_400.pth'))
# For segmentation and detection: fine-tuned in a run this short, it hardly shows what it knew.
frozen_demo_vit = dict(demo_vit, frozen_stages=4, drop_path_rate=0.0)
# One epoch of warm-up, then a half cosine. A short run needs ten or more times the paper's learning
# rate; with its decay over the layers the ViT keeps more of what it has learned.
warmup = dict(
    type='LinearLR', start_factor=1e-30, end=1, by_epoch=True, convert_to_iter_based=True)
cosine = dict(
    type='CosineAnnealingLR', eta_min=1e-6, begin=1, by_epoch=True, convert_to_iter_based=True)
layer_decay_rate = 0.65
