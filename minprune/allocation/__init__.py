"""How much to prune of each layer. Chapter 11."""
