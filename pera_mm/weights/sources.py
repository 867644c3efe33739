"""The commands that make the files of weights that our configs name."""

from pathlib import Path

# A file as configs name it: what to do when it is missing.
REMEDIES = {
    'checkpoints/pera_vitg.safetensors':
        "make it from the authors' download (docs/weights.md) with \"python "
        'tools/weights/convert.py checkpoints/pera_ViTG161024.params '
        'checkpoints/pera_vitg.safetensors --to backbone"',
    'checkpoints/pera_vitb.safetensors':
        'pre-train with configs/pera/pera_vitb_rsrsd.py, then make it with "python '
        'tools/weights/convert.py $(cat work_dirs/pera_vitb_rsrsd/last_checkpoint) '
        'checkpoints/pera_vitb.safetensors --to backbone"',
    'checkpoints/pera_ViTG161024.params':
        'download it by the link in the README of https://github.com/SathShen/PerA '
        '(docs/weights.md)',
    'work_dirs/demo/iter_400.pth': 'make it with "make demo"',
}


def how_to_make(path: str | Path) -> str | None:
    """Describe how a file is made, as a part of a sentence; None for a file of the user's."""
    return next((remedy for name, remedy in REMEDIES.items() if Path(path).match(name)), None)
