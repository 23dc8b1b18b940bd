"""A video diffusion transformer small enough for a CPU: its world, its training, its weights and a demo."""
