"""Files from outside and files of ours: pictures, text, locks."""
