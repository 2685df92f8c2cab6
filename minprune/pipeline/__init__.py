"""Pruning whole models: one pass, block by block, from disk to disk. Chapters 08, 12 and 22."""
