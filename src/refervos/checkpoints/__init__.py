"""Files of models: strict and safe reading and writing, names of released weights, the hub."""
