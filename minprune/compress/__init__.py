"""Fewer bits for each weight: grids, rounding to the nearest level, and GPTQ, driven by the pipeline below it."""
