# PerA's colors (models/pera_vit-b.py) for the other methods: much jitter for the student, little
# for the teacher.
pera_jitter = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
pera_colors = dict(
    student=dict(pera_jitter, jitter=0.72, gray=0.08),
    teacher=dict(pera_jitter, jitter=0.10, gray=0.00))
