"""Label Studio: results for its tasks, and its machine learning backend as routes of a server."""
