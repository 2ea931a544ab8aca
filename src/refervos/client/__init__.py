"""Python client of ``refervos serve``: sessions with the methods of ``Session``, whose model runs on the server."""

from refervos.client.connection import Connection, connect
from refervos.client.errors import ServerError
from refervos.client.remote_session import RemoteSession

__all__ = ["Connection", "RemoteSession", "ServerError", "connect"]
