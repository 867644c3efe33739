"""The changes to other packages that let them run here."""
