"""Measurements of clips without learned models: quality in comparison with the truth, and motion."""
