"""What the trainer can train: the tracker, the text encoder, and SAMWISE's adapters over both."""
