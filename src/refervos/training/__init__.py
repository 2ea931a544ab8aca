"""Training: recipes, the trainer, losses and the stages that it trains."""
