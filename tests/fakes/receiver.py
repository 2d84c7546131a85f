"""A web server on this machine that notes what is posted to it, and answers as it is told."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver:
    """Listens until ``close``; ``answers`` are given in turn, the last one from then on.

    An answer is a status, or ``hang``: none within a minute.
    """

    def __init__(self, *answers) -> None:
        self.answers = list(answers) or [200]
        self.got: list[tuple[str, dict, bytes]] = []
        self._over = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                owner.got.append((self.path, dict(self.headers), body))
                place = min(len(owner.got), len(owner.answers)) - 1
                answer = owner.answers[place]
                if answer == "hang":
                    owner._over.wait(60)
                    return
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("Location", f"{owner.url}elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self):
                self.do_POST()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"

    @property
    def documents(self) -> list[dict]:
        return [json.loads(body) for _, _, body in self.got]

    @property
    def kinds(self) -> list[str]:
        return [document["kind"] for document in self.documents]

    def close(self) -> None:
        self._over.set()
        self.server.shutdown()
        self.server.server_close()


def free_port() -> int:
    """A port that nobody listens to."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def elapsed(action) -> float:
    """Seconds that ``action()`` takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began
