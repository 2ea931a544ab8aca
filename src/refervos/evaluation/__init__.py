"""How good a model is, and at what: diagnosis on drawn clips, controls, intervals and ablation tables."""
