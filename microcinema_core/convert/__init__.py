"""`microcinema init`: converts public checkpoints into a model of this package."""
