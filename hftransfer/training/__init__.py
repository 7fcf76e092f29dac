"""Training: one loop for all tasks and strategies, through Accelerate."""
