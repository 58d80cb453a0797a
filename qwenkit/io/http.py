"""A small HTTP client for the hubs on the standard library: bounded JSON, resumable streams,
retries, safe redirects.

Credentials are sent to the host they belong to and to no other: a redirect to another host (the
hubs answer downloads with links into content networks) drops them, and one from https to http is
refused. Proxies come from the usual environment variables, certificates from the system. Retries
wait longer each time and honour Retry-After.

Not covered: HTTP/2, parallel connections, content encodings (the digest check would catch one).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any

from qwenkit.errors import HubError, OfflineError

_SECRETS = ("authorization", "cookie")
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
MAX_JSON_BYTES = 32 << 20


@dataclass(frozen=True)
class Policy:
    """How patient to be. Seconds; `attempts` count failures in a row without progress."""

    timeout: float = 15.0
    attempts: int = 5
    connect_attempts: int = 2
    backoff: float = 0.5
    max_wait: float = 30.0

    def wait(self, failures: int, retry_after: float | None = None) -> None:
        """Sleep before the next attempt."""
        delay = self.backoff * 2 ** (failures - 1) * random.uniform(0.75, 1.25)
        time.sleep(min(max(delay, retry_after or 0.0), self.max_wait))


class StatusError(HubError):
    """The server answered, but not with success."""

    def __init__(self, url: str, code: int, headers: Message, body: bytes = b"") -> None:
        self.code, self.headers, self.body = code, headers, body
        self.error_code = headers.get("X-Error-Code") or ""
        try:
            self.retry_after: float | None = float(headers.get("Retry-After") or "")
        except ValueError:
            self.retry_after = None
        super().__init__(
            f"{host_of(url)} answered {code} {http.client.responses.get(code, '')}.",
            "Try again later.",
        )

    @property
    def transient(self) -> bool:
        return self.code in _TRANSIENT


class UnreachableError(OfflineError):
    """No answer: no network, no such host, refused, timed out, cut, or an untrusted certificate."""

    def __init__(self, url: str, cause: BaseException, *, before_answer: bool = True) -> None:
        self.before_answer = before_answer
        reason = cause.reason if isinstance(cause, urllib.error.URLError) else cause
        self.certificate = isinstance(reason, ssl.SSLCertVerificationError)
        remedy = "Check the network and the proxy variables, or set HF_ENDPOINT to a mirror."
        if self.certificate:
            remedy = "Check the clock and the proxy; SSL_CERT_FILE names the certificates to trust."
        super().__init__(f"{host_of(url)} cannot be reached: {_describe(reason)}.", remedy)


def _describe(reason: object) -> str:
    if isinstance(reason, (TimeoutError, socket.timeout)):
        return "it did not answer in time"
    if isinstance(reason, socket.gaierror):
        return "its name cannot be looked up"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow at most five redirects, within http and https, never from https to http, without
    leaking credentials.
    """

    max_redirections = 5

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme != "https"):
            raise HubError(
                f"{old.netloc} redirects to {new.scheme}://{new.netloc}, which is not safe.",
                "Do not use it.",
            )
        same = (old.scheme, old.netloc) == (new.scheme, new.netloc)
        kept = {k: v for k, v in req.header_items() if same or k.lower() not in _SECRETS}
        kept.pop("Host", None)
        return urllib.request.Request(newurl, headers=kept, method=req.get_method())

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """For http and https alone: the default opener would also read file: and ftp: addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def host_of(url: str) -> str:
    """The host of a URL, for messages: query strings may hold signatures."""
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2] or "the hub"


@contextlib.contextmanager
def open_stream(
    url: str, headers: Mapping[str, str], policy: Policy
) -> Iterator[http.client.HTTPResponse]:
    """One GET without retries. Errors: StatusError, UnreachableError; a read from the response may
    raise more.
    """
    try:
        request = urllib.request.Request(url, headers=dict(headers))
        response = _opener().open(request, timeout=policy.timeout)
    except urllib.error.HTTPError as error:
        with error:
            body = b""
            with contextlib.suppress(OSError, http.client.HTTPException):
                body = error.read(4096)
        raise StatusError(url, error.code, error.headers, body) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnreachableError(url, error) from error
    with response:
        yield response


def get_json(url: str, headers: Mapping[str, str], policy: Policy) -> tuple[Any, Message]:
    """GET a JSON document of at most 32 MiB, with retries. Errors: StatusError, UnreachableError,
    HubError.
    """
    failures = 0
    while True:
        try:
            with open_stream(url, headers, policy) as response:
                body = _read_all(url, response)
                answer_headers = response.headers
            break
        except StatusError as error:
            failures += 1
            if not error.transient or failures >= policy.attempts:
                raise
            policy.wait(failures, error.retry_after)
        except UnreachableError as error:
            failures += 1
            limit = policy.connect_attempts if error.before_answer else policy.attempts
            if error.certificate or failures >= limit:
                raise
            policy.wait(failures)
    try:
        return json.loads(body), answer_headers
    except (ValueError, RecursionError) as error:
        raise HubError(
            f"{host_of(url)} did not answer with JSON.", "Check HF_ENDPOINT and the proxy."
        ) from error


def _read_all(url: str, response: http.client.HTTPResponse) -> bytes:
    try:
        body = response.read(MAX_JSON_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(url, error, before_answer=False) from error
    if len(body) > MAX_JSON_BYTES:
        raise HubError(
            f"{host_of(url)} answered with more than {MAX_JSON_BYTES} bytes.", "Check HF_ENDPOINT."
        )
    announced = response.headers.get("Content-Length")
    if announced is not None and announced.isdigit() and len(body) < int(announced):
        cut = ConnectionError("the connection was cut")
        raise UnreachableError(url, cut, before_answer=False)
    return body


def next_page(headers: Message, url: str) -> str | None:
    """The URL of the next page from a Link header, if it stays on the same host."""
    match = re.search(r'<([^>]+)>\s*;\s*rel="?next"?', headers.get("Link") or "")
    if match is None:
        return None
    following = urllib.parse.urljoin(url, str(match[1]))
    here, there = urllib.parse.urlsplit(url), urllib.parse.urlsplit(following)
    if there.netloc != here.netloc:
        # A mirror may pass on the original's links: stay with the mirror.
        there = there._replace(scheme=here.scheme, netloc=here.netloc)
    return urllib.parse.urlunsplit(there)
