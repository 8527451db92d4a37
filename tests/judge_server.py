"""An OpenAI-compatible chat server on this machine whose replies a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class JudgeServer:
    """A running server.

    Attributes:
        url: its address.
        requests: path and body of every request.
        keys: Authorization header of every request.
        codes: status codes of the next responses; 200 when it is empty.
        reply: content of the last message -> text of the completion, or bytes that are sent as they are.
    """

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    reply: Callable[[str], Any] = lambda content: "Mark: 7"


@contextmanager
def running_server() -> Iterator[JudgeServer]:
    """A server on a free port, stopped at the end of the block."""
    server = JudgeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append({"path": self.path, **body})
            server.keys.append(self.headers["Authorization"])
            code = server.codes.pop(0) if server.codes else 200
            reply = server.reply(body["messages"][-1]["content"])
            if not isinstance(reply, bytes):
                reply = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    yield server
    http.shutdown()
    http.server_close()
