"""``refervos serve``: videos, sessions and jobs over HTTP and WebSocket; independent of model families."""
