"""What several architectures are built of: layers, attention in windows, transformers, the selective scan, rasters."""
