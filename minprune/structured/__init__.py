"""Part III: models that get physically smaller. Fewer neurons, fewer heads, fewer blocks."""
