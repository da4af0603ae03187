"""What reconstructions keep between parcels, and what the features of an encoder rest on."""
