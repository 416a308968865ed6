"""Train, render and evaluate; run folders and checkpoints."""
