"""What a pruned model is still worth: perplexity, last word, minimal pairs, benchmarks. Chapter 09."""
