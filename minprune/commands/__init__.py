"""The commands of the command line, one module each: add(commands) says what can be asked, run(arguments) does it."""
