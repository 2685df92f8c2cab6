"""Many runs into one file, resumable. Chapter 09."""
