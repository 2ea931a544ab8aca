"""How fast a model is, where its time goes, what memory it takes, and how far from the machine's floor it is."""
