"""The bundled models: their extensions of the paper's network, the drawn scenes they are trained on, their evaluation.

The rest of the package imports this folder only when a file, a model name or a command requires one of these models.
"""
