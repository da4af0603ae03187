"""Systems that learn from labels with a gradient: networks on connectomes and clips, fine-tuning, attentive pooling."""
