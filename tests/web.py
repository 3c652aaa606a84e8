"""A web host on the loopback interface that answers as a test wants it to."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """Files and statuses by path; `asked` counts the requests of each path."""

    def __init__(self):
        self.files, self.statuses, self.asked = {}, {}, {}
        self.silent = threading.Event()  # set: what hangs is let go
        self.port = 0

    def url(self, name):
        return f"http://127.0.0.1:{self.port}/{name}"


@contextmanager
def serving():
    """Serve until the end of the block; "loop" redirects to itself, "hang" never answers."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip("/")
            web.asked[name] = web.asked.get(name, 0) + 1
            if name == "hang":
                web.silent.wait()
                return
            status = web.statuses.get(name, 200 if name in web.files else 404)
            data = web.files.get(name, b"no") if status == 200 else b"no"
            self.send_response(302 if name == "loop" else status)
            if name == "loop":
                self.send_header("Location", "/loop")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield web
    finally:
        web.silent.set()
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port():
    """A port of the loopback interface that nobody listens on."""
    with serving() as web:
        return web.port
