"""An OpenAI-compatible server on this machine whose answers a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Server:
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    says: Callable[[str], Any] = lambda asked: "Mark: 7"


@pytest.fixture
def server() -> Iterator[Server]:
    own = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            own.requests.append({"path": self.path, **body})
            own.keys.append(self.headers["Authorization"])
            code = own.codes.pop(0) if own.codes else 200
            said = own.says(body["messages"][0]["content"])
            answer = (
                said if isinstance(said, bytes) else json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            )
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    own.url = f"http://127.0.0.1:{http.server_port}"
    yield own
    http.shutdown()
    http.server_close()
