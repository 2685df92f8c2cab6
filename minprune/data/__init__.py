"""Text becomes windows of tokens. Chapter 10."""
