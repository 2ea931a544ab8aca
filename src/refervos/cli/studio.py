"""``refervos studio``."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from typing import Annotated

import typer

from refervos.cli.options import DeviceOption, ModelOption
from refervos.cli.serve import (
    LOOPBACK,
    AllowFilesOption,
    AllowHostOption,
    AllowSourcesOption,
    AllowWebhookOption,
    CertificateOption,
    FolderOption,
    HostOption,
    KeyOption,
    LimitOption,
    PortOption,
    TokenOption,
    run_server,
    server_settings,
)
from refervos.errors import require_installed


def studio(
    model: ModelOption = "miniature",
    device: DeviceOption = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    host: HostOption = LOOPBACK,
    port: PortOption = 8766,
    folder: FolderOption = None,
    token_file: TokenOption = None,
    allow_files: AllowFilesOption = None,
    allow_sources: AllowSourcesOption = None,
    allow_webhook: AllowWebhookOption = None,
    allow_host: AllowHostOption = None,
    limit: LimitOption = None,
    certfile: CertificateOption = None,
    keyfile: KeyOption = None,
) -> None:
    """Open the studio: type a sentence, watch the mask follow, correct it with a click (see docs/studio.md).

    Example: `refervos studio --model samwise-mevis --folder sessions`
    """
    require_installed("the studio", "studio", "fastapi", "uvicorn", "websockets")
    from refervos.studio import PAGE, samples

    settings = server_settings(
        host, folder, token_file, allow_files, allow_sources, allow_webhook, allow_host, None, limit, page=PAGE
    )
    on_ready: Callable[[str], object] | None = webbrowser.open if browser else None
    run_server(model, device, settings, host, port, certfile, keyfile, samples(), on_ready)
