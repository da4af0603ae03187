"""What training adds to an encoder: decoders, predictors and heads, one file a way of learning."""
