"""Training of the models of this package: settings, the training loop, processes, the paper's objective."""
