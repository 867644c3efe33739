"""What the steps of the collection share."""
