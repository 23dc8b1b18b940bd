"""A tiny video diffusion transformer that runs on a CPU: synthetic dataset, training, weights, demo and bench."""
