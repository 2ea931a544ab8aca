"""The command line: one file per command or group of commands, each a thin layer over the library."""
