"""What MMSegmentation, MMDetection and Open-CD lack for the paper's downstream tasks.

The only room that imports them, so nothing here is imported until a config asks for a module by
name in its ``custom_imports``.
"""
