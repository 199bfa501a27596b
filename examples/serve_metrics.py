"""A service that answers requests with one attached pipeline, and shows Prometheus what its runs do.

    python examples/serve_metrics.py --port 8000
    curl 'http://127.0.0.1:8000/generate?digit=3&steps=12'
    curl http://127.0.0.1:8000/metrics

The pipeline is that of ``text_to_image.py``, with the demo's small weights. It needs the extras ``demo`` and ``metrics``.
"""

from __future__ import annotations

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import prometheus_client

import magpolicy
import magpolicy_metrics
import text_to_image
import torch


class Service:
    """One pipeline, attached once. Its scheduler belongs to one request at a time."""

    def __init__(self, speedup: float) -> None:
        self.pipe = text_to_image.tiny()
        self.handle = magpolicy.attach(self.pipe, speedup=speedup, learn=False)
        self._turn = threading.Lock()
        self.generate(digit=0, steps=12)  # the first run finds out how the model calls its blocks

    def generate(self, digit: int, steps: int) -> dict[str, Any]:
        """Answer one request: which steps computed, and the mean of the picture."""
        with self._turn:
            images = self.pipe(**text_to_image.digit(digit), num_inference_steps=steps, output_type="latent").images
            return {"steps": self.handle.report.schedule.strip, "mean": float(images.mean())}


class Requests(BaseHTTPRequestHandler):
    """``/generate`` and ``/metrics``."""

    service: Service

    def do_GET(self) -> None:
        """Answer."""
        url = urlsplit(self.path)
        if url.path == "/metrics":
            self._send(prometheus_client.generate_latest(), prometheus_client.CONTENT_TYPE_LATEST)
        elif url.path == "/generate":
            asked = {name: int(values[0]) for name, values in parse_qs(url.query).items()}
            answer = self.service.generate(asked.get("digit", 3) % 10, asked.get("steps", 12))
            self._send(json.dumps(answer).encode(), "application/json")
        else:
            self.send_error(404)

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--speedup", type=float, default=2.0)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    Requests.service = Service(given.speedup)
    magpolicy_metrics.prometheus()  # after the warm-up, which is not to be counted
    with ThreadingHTTPServer(("127.0.0.1", given.port), Requests) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
