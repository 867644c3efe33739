"""The plans of a scene: where things lie in each land use."""
