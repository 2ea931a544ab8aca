"""SAM (Kirillov et al. 2023): image encoder, prompt encoder and mask decoder as tensor functions."""
