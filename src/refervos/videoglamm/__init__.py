"""VideoGLaMM: grounded conversations about a video, with a segmentation mask for each phrase of an answer."""
