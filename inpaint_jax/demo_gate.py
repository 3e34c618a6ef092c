"""What stands before the demo's web application: who reaches it, and that its page loads nothing from elsewhere.

A server on this machine alone can still be reached by any site that its user visits: the browser sends what a foreign
page tells it to. Such requests carry another origin, or another name of the host.
"""

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

# The page may use what this server sends and what it makes itself, and nothing else. Gradio's page needs scripts in
# the page; the painting library builds its drawing code from text.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


def is_private(host: str) -> bool:
    """Returns whether an address can be reached from this machine alone."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def check_address(host: str, port: int) -> int:
    """Returns the port, or a free one for 0.

    Raises:
        ValueError: the address is not one of this machine's, or something listens there already.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except socket.gaierror:
        raise ValueError(f"--host={host} is not an address: give 127.0.0.1, or another of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} is in use: end what listens there, or give another with --port") from None
        raise ValueError(f"cannot listen on {host}:{port} ({error.strerror}): give another --host or --port") from None


def _refusal(headers: dict[bytes, bytes], hosts: Sequence[str]) -> str:
    """Returns why a request is refused, or ""."""
    host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
    if hosts and urlsplit(f"//{host}").hostname not in hosts:
        return "this server is known by another name"
    if origin and urlsplit(origin).netloc != host:
        return "this server answers its own page only"
    return ""


def gate(app: Callable[..., Awaitable], hosts: Sequence[str] = ()) -> Callable[..., Awaitable]:
    """Wraps an ASGI application.

    Args:
        app: the application.
        hosts: the names under which it may be asked for; none = any.

    Returns:
        The application that answers 403 to requests under another name or from another site's page, and sends a
        content security policy with every answer.
    """

    async def guarded(scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        if refusal := _refusal(dict(scope["headers"]), hosts):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": refusal.encode()})
            return

        async def send_with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return guarded
