"""What a causal language model is made of: its layers, its blocks, its passes, its files."""
