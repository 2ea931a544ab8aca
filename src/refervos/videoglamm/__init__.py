"""VideoGLaMM: a language model that describes a video and gives a mask for each phrase of its answer."""
