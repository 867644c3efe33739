"""Drawn data: land-use scenes with labels, and a small planet."""
