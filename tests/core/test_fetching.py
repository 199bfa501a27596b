"""A file from an address: https alone, bounded in bytes and time. The server is a real one, on this machine."""

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from magpolicy.files._fetching import checked_address, fetched, is_address
from magpolicy.files._reading import TooLarge

CERTIFICATE = Path(__file__).parents[1] / "data" / "https" / "localhost.pem"  # with its key: it is for these tests alone


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        name, _, rest = self.path[1:].partition("/")
        getattr(self, f"answer_{name}")(rest)

    def answer_file(self, rest):
        self.say(200, b"x" * int(rest))

    def answer_to(self, rest):
        self.say(302, b"", Location=rest)

    def answer_round(self, rest):
        self.say(302, b"", Location="/round/")

    def answer_none(self, rest):
        self.say(404, b"no")

    def answer_lies(self, rest):
        self.say(200, b"x" * 5000, **{"Content-Length": "10"})

    def answer_cut(self, rest):
        self.say(200, b"x", **{"Content-Length": "10"})

    def answer_nonsense(self, rest):
        self.wfile.write(b"what?\r\n\r\n")

    def answer_dribble(self, rest):
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def answer_silence(self, rest):
        time.sleep(2)

    def say(self, code, text, **headers):
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(text))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # whoever asked has gone


@pytest.fixture(scope="module")
def server():
    """The address of a server, and what trusts it."""
    made = Quiet(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{made.server_port}", ssl.create_default_context(cafile=str(CERTIFICATE))
    made.shutdown()
    made.server_close()
    thread.join()


def get(server, path, **options):
    address, trust = server
    return fetched(f"{address}/{path}", trust=trust, **options)


def test_what_is_there_comes(server):
    assert get(server, "file/3000") == b"x" * 3000
    assert get(server, "to//file/7") == b"x" * 7


@pytest.mark.parametrize(("size", "fits"), [(999, True), (1000, True), (1001, False), (100_000, False)])
def test_no_more_bytes_come_than_asked_for(server, size, fits):
    if fits:
        assert len(get(server, f"file/{size}", most=1000)) == size
    else:
        with pytest.raises(TooLarge):
            get(server, f"file/{size}", most=1000)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("none/", OSError, "404"),
        ("cut/", OSError, "cut off, 9 bytes before"),
        ("nonsense/", OSError, "BadStatusLine"),
        ("round/", OSError, "redirect"),
        ("to/http://localhost/file/1", ValueError, "only https"),
        ("to/file:///etc/passwd", OSError, "not allowed"),
        ("to/https://me:secret@localhost/", ValueError, "a name or a password"),
    ],
)
def test_all_else_is_an_error_in_words(server, path, error, words):
    with pytest.raises(error, match=words):
        get(server, path)


def test_a_server_that_lies_about_its_size_gives_what_it_said(server):
    assert get(server, "lies/") == b"x" * 10


@pytest.mark.parametrize(
    ("path", "options"),
    [("silence/", {"wait": 0.3}), ("dribble/", {"seconds": 0.5}), ("silence/", {"seconds": 0.3})],
    ids=["wait", "dribble", "seconds"],
)
def test_neither_silence_nor_dribbling_holds_it_up(server, path, options):
    began = time.monotonic()
    with pytest.raises(OSError, match=r"timed out|more than"):
        get(server, path, **options)
    assert time.monotonic() - began < 1.9  # the server itself takes 2 and 5 seconds


def test_a_certificate_that_nobody_vouches_for_is_refused(server):
    with pytest.raises(OSError, match=r"(?i)certificate"):
        fetched(f"{server[0]}/file/1")


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost/a.json",
        "file:///etc/passwd",
        "ftp://h/a",
        "data://x",
        "https:///a.json",
        "https://me@h/a",
        "https://me:x@h/a",
    ],
)
def test_other_addresses_are_refused_before_anything_is_asked(address):
    assert is_address(address)
    with pytest.raises(ValueError, match=r"only https|no host|a name or a password"):
        fetched(address)


def test_a_good_one_is_taken_as_it_is():
    assert checked_address("https://example.org/a.json?x=1") == "https://example.org/a.json?x=1"
    assert not is_address("C:/a.json")
    assert not is_address("a.json")
