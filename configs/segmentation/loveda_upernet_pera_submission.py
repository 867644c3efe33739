"""LoveDA's test split, as its server takes it: PNGs of 0 to 6, and a flat zip beside the folder.

Command:  python tools/test.py configs/segmentation/loveda_upernet_pera_submission.py CHECKPOINT
"""

_base_ = '../loveda_upernet_pera.py'
test_dataloader = dict(dataset=dict(
    data_prefix=dict(_delete_=True, img_path='img_dir/test'),
    pipeline=[dict(type='pera_mm.LoadRGB'),
              dict(type='PackSegInputs', meta_keys=_base_.meta_keys)]))
test_evaluator = dict(_delete_=True, type='pera_mm.LoveDASubmission',
                      output_dir='work_dirs/loveda_submission')
