"""Linear readers of fixed features, ComBat inside the training part, and scans matched to each other."""
