"""The command line: main.py, and one module a command: add(commands) says what can be asked, run(arguments) does it."""
