"""Reading untrusted images and text, writing files atomically, and locks."""
