"""A real MJPEG camera on loopback that misbehaves on demand."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import cv2
import numpy as np

Mode = Literal["run", "hang", "hold", "close", "html"]
GREYS = 250


class MjpegServer:
    """Serves pictures whose grey is their number modulo `GREYS`.

    What it does next is in `mode`, for streams that are open too: "hang" makes no pictures, "hold" makes them and sends
    them all at once later, as a network does that was interrupted.
    """

    def __init__(self, port: int = 0, width_px: int = 160, height_px: int = 120, fps: float = 50.0) -> None:
        self.mode: Mode = "run"
        self.connections = 0
        self.made = 0
        self._size = (height_px, width_px, 3)
        self._interval_s = 1.0 / fps
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/video.mjpg"

    def __enter__(self) -> MjpegServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(camera) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                camera.connections += 1
                if camera.mode == "html":
                    page = b"<html><body>Please sign in</body></html>"
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html")
                    self.send_header("Content-Length", str(len(page)))
                    self.end_headers()
                    self.wfile.write(page)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                with contextlib.suppress(OSError):  # the other end goes when it likes
                    camera._stream(self.wfile)

        return Handler

    def _stream(self, out) -> None:
        held = b""
        while not self._over.wait(self._interval_s) and self.mode != "close":
            if self.mode == "hang":
                continue
            _, jpeg = cv2.imencode(".jpg", np.full(self._size, self.made % GREYS, np.uint8))
            self.made += 1
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
            held += head + jpeg.tobytes() + b"\r\n"
            if self.mode != "hold":
                out.write(held)
                held = b""
