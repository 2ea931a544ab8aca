"""The command line: a file for each command, each a few lines over the library."""
