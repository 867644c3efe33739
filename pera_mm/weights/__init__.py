"""Weights: files read safely, and the names of their tensors in every layout."""
