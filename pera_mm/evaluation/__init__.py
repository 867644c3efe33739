"""The measures: features of labelled images, kNN and linear accuracy, signs of collapse."""
