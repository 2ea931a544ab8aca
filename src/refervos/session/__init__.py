"""State of a stream between its frames: sessions, saved sessions, scene changes."""
