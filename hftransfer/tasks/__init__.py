"""What is predicted: how rows become tensors, how outputs become answers, and how answers are scored."""
