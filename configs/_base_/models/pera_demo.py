# PerA with the demo's ViT (0.8M parameters). Kept from the paper: mask ratios, losses, colors, and
# tokens enough for them (a crop of 112 px has 196 of 8 px, a local one of 48 px 36). Shrunk:
# pixels, width, depth, heads, prototypes, and the weight of the pixel loss.
_base_ = 'pera_vit-b.py'
head = dict(hidden_channels=512, bottleneck_channels=128)
model = dict(
    backbone=dict(arch='demo', img_size=112, patch_size=8, drop_path_rate=0.1),
    projector=dict(num_prototypes=2048, **head),
    predictor=head,
    # The paper's weight per value would be 0.04 (192 values a patch, not 768). In a run of minutes
    # it costs [cls] some nine points of kNN on drawn scenes (docs/measurements.md).
    pixel=dict(loss_weight=0.004))
