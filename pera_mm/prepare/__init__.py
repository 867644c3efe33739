"""From the official archives to the folders that the downstream configs read, and a verdict."""
