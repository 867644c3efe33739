"""The commands that make the files of weights that our configs name."""

from pathlib import Path


def _of_pretraining(folder: str, config: str, name: str) -> str:
    return (f'pre-train with configs/{folder}/{config}.py, then make it with "python '
            f'tools/weights/convert.py $(cat work_dirs/{config}/last_checkpoint) '
            f'checkpoints/{name}.safetensors --to backbone"')


# A file as configs name it: what to do when it is missing.
REMEDIES = {
    'checkpoints/pera_vitg.safetensors':
        "make it from the authors' download (docs/weights.md) with \"python "
        'tools/weights/convert.py checkpoints/pera_ViTG161024.params '
        'checkpoints/pera_vitg.safetensors --to backbone"',
    'checkpoints/pera_vitb.safetensors': _of_pretraining('pera', 'pera_vitb_rsrsd', 'pera_vitb'),
    'checkpoints/pera_vitb_patch-8.safetensors':
        _of_pretraining('pera/ablations', 'table12_patch-8', 'pera_vitb_patch-8'),
    'checkpoints/pera_vitb_patch-14.safetensors':
        _of_pretraining('pera/ablations', 'table12_patch-14', 'pera_vitb_patch-14'),
    'checkpoints/dino_vitb.safetensors':
        _of_pretraining('baselines', 'dino_vitb_tov-100k', 'dino_vitb'),
    'checkpoints/pera_ViTG161024.params':
        'download it by the link in the README of https://github.com/SathShen/PerA '
        '(docs/weights.md)',
    'checkpoints/dinov2_vitb14_pretrain.pth':
        'download it from '
        'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth, or give '
        'another public ViT-B (docs/weights.md)',
    'work_dirs/demo/iter_400.pth': 'make it with "make demo"',
}


def how_to_make(path: str | Path) -> str | None:
    """Describe how a file is made, as a part of a sentence; None for a file of the user's."""
    return next((remedy for name, remedy in REMEDIES.items() if Path(path).match(name)), None)
