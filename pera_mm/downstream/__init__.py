"""The parts that MMSegmentation, MMDetection and Open-CD lack for the paper's downstream tasks.

No other room imports these toolboxes, and nothing here is imported until a config names a module in
its ``custom_imports``.
"""
