"""``refervos serve``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refervos.cli.options import DeviceOption, ModelOption
from refervos.errors import ConfigError, UnknownWordsWarning, require_installed

if TYPE_CHECKING:
    from refervos.serving.application import ServerSettings
    from refervos.serving.samples import Samples

LOOPBACK = "127.0.0.1"

HostOption = Annotated[
    str, typer.Option(help="Address to listen on; any but this machine's own (127.0.0.1, ::1) requires a token.")
]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for videos and sessions, which survive a restart; default a temporary one.", show_default=False
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(help="File whose first line is the token; default a new one, which is printed.", show_default=False),
]
AllowFilesOption = Annotated[
    list[Path] | None,
    typer.Option(help="Folder whose files may be opened by path; repeat for several.", show_default=False),
]
AllowSourcesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="'camera' for the cameras of this machine, or a HOST or HOST:PORT whose streams may be opened; repeat for "
        "several.",
        show_default=False,
    ),
]
AllowWebhookOption = Annotated[
    list[str] | None,
    typer.Option(help="Address to which alerts may be posted; repeat for several.", show_default=False),
]
AllowHostOption = Annotated[
    list[str] | None, typer.Option(help="Further name by which browsers address this server.", show_default=False)
]
AllowOriginOption = Annotated[
    list[str] | None, typer.Option(help="Origin of a page of another server that may use this one.", show_default=False)
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Limit to change, such as sessions=4; /v1/limits lists them; repeat for several.", show_default=False
    ),
]
LabelStudioOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the media of Label Studio; its backend is then served at /label-studio.", show_default=False
    ),
]
CertificateOption = Annotated[
    Path | None, typer.Option(help="File with a TLS certificate, for https.", show_default=False)
]
KeyOption = Annotated[Path | None, typer.Option(help="File with the certificate's private key.", show_default=False)]


def serve(
    model: ModelOption = "miniature",
    device: DeviceOption = None,
    host: HostOption = LOOPBACK,
    port: PortOption = 8765,
    folder: FolderOption = None,
    token_file: TokenOption = None,
    allow_files: AllowFilesOption = None,
    allow_sources: AllowSourcesOption = None,
    allow_webhook: AllowWebhookOption = None,
    allow_host: AllowHostOption = None,
    allow_origin: AllowOriginOption = None,
    limit: LimitOption = None,
    label_studio: LabelStudioOption = None,
    certfile: CertificateOption = None,
    keyfile: KeyOption = None,
) -> None:
    """Serve a model over HTTP and WebSocket (see docs/serving.md).

    Example: `refervos serve --model samwise-mevis --folder sessions`
    """
    settings = server_settings(
        host, folder, token_file, allow_files, allow_sources, allow_webhook, allow_host, allow_origin, limit
    )
    if label_studio is not None:
        if not label_studio.is_dir():
            raise ConfigError(f"--label-studio {label_studio} is not a folder; give the folder of its media.")
        settings = replace(settings, label_studio=label_studio)
    run_server(model, device, settings, host, port, certfile, keyfile)


def server_settings(
    host: str,
    folder: Path | None,
    token_file: Path | None,
    allow_files: list[Path] | None,
    allow_sources: list[str] | None,
    allow_webhook: list[str] | None,
    allow_host: list[str] | None,
    allow_origin: list[str] | None,
    limit: list[str] | None,
    page: Path | None = None,
) -> ServerSettings:
    """Build the settings of a server from the options of a command.

    Args:
        host: Address to listen on.
        folder: Folder for videos and sessions.
        token_file: File with the token.
        allow_files: Folders whose files may be opened.
        allow_sources: Allowed cameras and hosts.
        allow_webhook: Addresses for alerts.
        allow_host: Further names of the server.
        allow_origin: Further origins.
        limit: Limits as NAME=VALUE.
        page: Folder of a page to serve.

    Returns:
        The settings.

    Raises:
        MissingDependencyError: The extra is not installed.
        ConfigError: An option is invalid.
    """
    require_installed("the server", "studio", "fastapi", "uvicorn", "websockets", "httpx", "prometheus_client")
    from refervos.serving.alerts import WebhookRules
    from refervos.serving.application import ServerSettings
    from refervos.serving.guard import AccessRules, is_loopback
    from refervos.serving.source_rules import SourceRules

    for each in allow_files or []:
        if not each.is_dir():
            raise ConfigError(f"--allow-files {each} is not a folder; give the folder whose files may be opened.")
    for address in allow_webhook or []:
        if not address.lower().startswith(("http://", "https://")):
            raise ConfigError("--allow-webhook needs a whole address that begins with http:// or https://.")
    names = set(allow_sources or [])
    token = None if is_loopback(host) and token_file is None else read_token(token_file)
    return ServerSettings(
        folder=folder,
        limits=parse_limits(limit or []),
        access=AccessRules(
            token=token,
            hosts=frozenset({host.lower(), *map(str.lower, allow_host or [])}),
            origins=frozenset(allow_origin or []),
        ),
        sources=SourceRules(
            files=tuple(allow_files or ()),
            cameras="camera" in names,
            hosts=frozenset(each.lower() for each in names - {"camera"}),
        ),
        webhooks=WebhookRules(tuple(allow_webhook or ())),
        page=page,
    )


def read_token(path: Path | None) -> str:
    """Read the token from a file, or create one.

    Raises:
        ConfigError: The file cannot be read, or its token is too short.
    """
    import secrets

    if path is None:
        return secrets.token_urlsafe(32)
    try:
        token = (path.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--token-file {path} cannot be read; give a text file whose first line is the token."
        ) from error
    if len(token) < 16 or not token.isascii():
        raise ConfigError(f"the token in {path} is too short or not ASCII; it must have at least 16 characters.")
    return token


def parse_limits(texts: list[str]) -> Any:
    """Parse limits written as NAME=VALUE.

    Raises:
        ConfigError: A name is unknown, or a value is not a positive number.
    """
    from refervos.serving.limits import Limits

    limits = Limits()
    for text in texts:
        name, _, value = text.partition("=")
        if not hasattr(limits, name):
            known = ", ".join(sorted(vars(limits)))
            raise ConfigError(f"--limit {text} names an unknown limit; the limits are {known}.")
        try:
            number = type(getattr(limits, name))(value)
        except ValueError as error:
            raise ConfigError(f"--limit {text} is not a number; write NAME=NUMBER.") from error
        limits = replace(limits, **{name: number})
    return limits


def run_server(
    model: str,
    device: str | None,
    settings: ServerSettings,
    host: str,
    port: int,
    certfile: Path | None = None,
    keyfile: Path | None = None,
    samples: Samples | None = None,
    on_ready: Callable[[str], object] | None = None,
) -> None:
    """Load the model and serve it until interrupted.

    Args:
        model: The model.
        device: Device of the model.
        settings: Settings of the server.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        certfile: TLS certificate.
        keyfile: Its private key.
        samples: Clips that can be opened without an upload.
        on_ready: Called with the server's address, which includes the token if there is one, once it answers.

    Raises:
        RefervosError: The model cannot be loaded, or the address is not available.
    """
    import socket

    import uvicorn

    from refervos.loading import load
    from refervos.serving.application import create_app

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # from here on, whoever reads the address below can connect
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{host}:{port} is not available ({reason}); choose another --host or --port.") from error
    app = create_app({model: load(model, device=device)}, settings, samples)
    scheme = "http" if certfile is None else "https"
    shown = f"[{host}]" if ":" in host else host
    address = f"{scheme}://{shown}:{listening.getsockname()[1]}/"
    token = settings.access.token
    address += "" if token is None else f"#token={token}"
    typer.echo(f"refervos serves {model} at {address}")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses of requests are nobody's business
        ws_max_size=settings.limits.message_bytes,
        ssl_certfile=certfile,
        ssl_keyfile=keyfile,
        timeout_graceful_shutdown=3,
        server_header=False,
    )

    class Server(uvicorn.Server):
        """A server that reports when it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if on_ready is not None and self.started:
                on_ready(address)

    with warnings.catch_warnings():
        # Sentences of users do not belong in the log; /v1/models has the words that the model knows.
        warnings.simplefilter("ignore", UnknownWordsWarning)
        Server(config).run(sockets=[listening])
