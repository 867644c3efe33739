"""What is changed in other packages so that they run here."""
