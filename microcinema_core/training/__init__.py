"""Training and evaluation: scenes drawn by the program, the paper's objective, and figures that can be checked."""
