# The colors of DINO and DINOv2 (main_dino.py; dinov2/data/augmentations.py), student and teacher
# alike. `exclusive=False`: a crop can be jittered and gray.
dino_jitter = dict(
    jitter=0.8, gray=0.2, exclusive=False, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
dino_colors = dict(
    global_crops=[dict(dino_jitter, blur=1.0), dict(dino_jitter, blur=0.1, solarize=0.2)],
    local_crops=dict(dino_jitter, blur=0.5))
