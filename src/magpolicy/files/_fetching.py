"""Fetching one file from an address: https alone, bounded in bytes and in time. What comes is read as any stranger's file."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from magpolicy.files._reading import TooLarge

if TYPE_CHECKING:
    import ssl

HTTPS = "https"
MAX_FETCHED = 20_000_000
"""Bytes; a calibration of 50 steps and two streams takes 0.2 MB as JSON."""
MAX_SECONDS = 60.0
"""For the whole of it; a server that sends a byte now and then is given up."""
MAX_WAIT = 15.0
"""Seconds without a byte."""
MAX_REDIRECTS = 5


def is_address(text: str) -> bool:
    """Whether a text is an address and no path; also one that is refused, so that it is not taken for a file's name."""
    return "://" in text


def checked_address(text: str) -> str:
    """``text``, which can be fetched from.

    Raises:
        ValueError: it is no https address, or holds a name and a password; in words.
    """
    parts = urlsplit(text)
    if parts.scheme.lower() != HTTPS:
        raise ValueError(f"it begins with {parts.scheme}://; only https:// is fetched from")
    if not parts.hostname:
        raise ValueError("it names no host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds a name or a password; download the file, and import that")
    return text


def fetched(
    address: str,
    *,
    most: int = MAX_FETCHED,
    seconds: float = MAX_SECONDS,
    wait: float = MAX_WAIT,
    trust: ssl.SSLContext | None = None,
) -> bytes:
    """What is at ``address``. Redirections are followed if they lead to https.

    Args:
        most: bytes that it may have.
        seconds: for the whole of it.
        wait: without a byte.
        trust: which certificates are trusted; those of the system by default.

    Raises:
        OSError: it cannot be fetched, or not in time.
        TooLarge: it has more bytes.
        ValueError: the address, or where it leads, is refused; in words.
    """
    checked_address(address)
    came: list[bytes | BaseException] = []

    def fetch() -> None:
        try:
            came.append(_fetched(address, most, min(wait, seconds), trust))
        except BaseException as error:  # raised below, in the thread that asked
            came.append(error)

    worker = threading.Thread(target=fetch, name="magpolicy-fetch", daemon=True)  # a server may dribble for hours
    worker.start()
    worker.join(seconds)
    if not came:
        raise TimeoutError(f"it takes more than {seconds:g} seconds")
    if isinstance(came[0], BaseException):
        raise came[0]
    return came[0]


def _fetched(address: str, most: int, wait: float, trust: ssl.SSLContext | None) -> bytes:
    import http.client  # late, as a run fetches nothing
    import urllib.error
    import urllib.request

    class OnlyHttps(urllib.request.HTTPRedirectHandler):
        max_redirections = MAX_REDIRECTS

        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            try:
                checked_address(newurl)
            except ValueError as error:
                fp.close()
                raise ValueError(f"it leads to {newurl}: {error}") from None
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    opener = urllib.request.OpenerDirector()  # with these alone: the usual one opens file:, ftp: and data: too
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=trust),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        OnlyHttps(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(address, headers={"User-Agent": "magpolicy", "Accept-Encoding": "identity"})
    try:
        with opener.open(request, timeout=wait) as answer:
            content: bytes = answer.read(most + 1)
            if len(content) <= most and answer.length:
                raise OSError(f"it was cut off, {answer.length} bytes before its end")
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(str(error)) from None
    except http.client.HTTPException as error:
        raise OSError(f"the server does not answer as one does: {error!r}") from error
    if len(content) > most:
        raise TooLarge(len(content))
    return content
