"""A web server on the loopback interface with configurable files and status codes."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebServer:
    """Contents, status codes and request counts by path."""

    def __init__(self):
        self.files, self.statuses, self.request_counts = {}, {}, {}
        self.closing = threading.Event()  # set to end requests of "hang"
        self.port = 0

    def url(self, name):
        return f"http://127.0.0.1:{self.port}/{name}"


@contextmanager
def serve_files():
    """Serve files until the end of the block; "loop" redirects to itself, "hang" never answers."""
    web = WebServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            web.request_counts[name] = web.request_counts.get(name, 0) + 1
            if name == "hang":
                web.closing.wait()
                return
            status = web.statuses.get(name, 200 if name in web.files else 404)
            data = web.files.get(name, b"no") if status == 200 else b"no"
            self.send_response(302 if name == "loop" else status)
            if name == "loop":
                self.send_header("Location", "/loop")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            """Suppress the log line of a request."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield web
    finally:
        web.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port():
    """Return a port of the loopback interface without a listener."""
    with serve_files() as web:
        return web.port
