"""Vectors of images and of places: extracted piece by piece, kept in a table, searched exactly."""
