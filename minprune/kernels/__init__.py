"""How zeros are skipped: one C file, what compiles and loads it, and the modules that multiply with it. Chapter 20."""
