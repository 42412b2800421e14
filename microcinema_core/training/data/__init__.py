"""Videos for training: where they are, which clips are cut from them, in which order."""
