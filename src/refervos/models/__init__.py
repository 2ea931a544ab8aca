"""Models known by name: a table of them, and how each is fetched, checked, kept and removed."""
