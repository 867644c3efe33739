"""From a trained model and whole scenes to maps, boxes and classes (docs/mapping.md).

Only tools and ``pera_mm.predict`` import this package.
"""
