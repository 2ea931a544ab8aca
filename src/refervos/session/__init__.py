"""What a stream holds between its frames: sessions, their state on disk, scene changes."""
