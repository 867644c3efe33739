"""Table 11: spatial alignment, disjoint mask and pixel prediction: PerA itself.

Target:   90.1 OA on AID 20 %. Table 11's first row, DINOv2 with iBOT (81.4), is
          configs/baselines/dinov2_vitb_tov-100k.py; `--cfg-options model.ibot=None` removes iBOT.
Command:  tools/dist_train.sh configs/pera/ablations/table11_sa-dm-pp.py 1
"""

_base_ = '../pera_vitb_tov-100k.py'
