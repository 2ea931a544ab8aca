"""CVAT: export of videos ("CVAT for video 1.1"), and functions for its command line and its agents."""
