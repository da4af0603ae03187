"""Which systems a benchmark has, in what order, and how each compares with the others."""
