"""The parts that MMSegmentation, MMDetection and Open-CD lack for the paper's downstream tasks.

No other package of pera_mm imports these toolboxes. Nothing here is imported until a config names a
module in its ``custom_imports``.
"""
