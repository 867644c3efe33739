# The schedule of the small runs: that of 200 epochs in eight, of which the first warms up.
_base_ = 'pera_200e.py'
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = 1
train_cfg = dict(max_epochs=8)
