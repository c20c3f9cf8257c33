"What the hostile tests share: small images, a bomb, a server that answers as it is told"
import io, struct, sys, threading, time, zlib
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
from PIL import Image, ImageDraw

LOCAL = ['127.0.0.1']
several_hosts = pytest.mark.skipif(sys.platform == 'darwin', reason='macOS answers at 127.0.0.1 and at no other loopback address')


def image_bytes(n=0, size=(96, 80), fmt='JPEG'):
    image = Image.new('RGB', size, (30 + 40*n % 200, 120, 90))
    draw = ImageDraw.Draw(image)
    for i in range(6): draw.rectangle([7*i + n, 9*i, 7*i + 20 + n, 9*i + 11], fill=(255 - 30*i, 40*i % 255, (60 + 50*n) % 255))
    out = io.BytesIO()
    image.save(out, fmt)
    return out.getvalue()


def bomb(width=60000, height=60000):
    chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*64)) + chunk(b'IEND', b'')


def tiles(n):
    "A TIFF of `n` tiles of one pixel"
    tags = [(256, 4, 1, n), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1), (322, 3, 1, 1), (323, 3, 1, 1), (324, 3, n, 200), (325, 3, n, 200)]
    return b'II*\0' + struct.pack('<IH', 8, len(tags)) + b''.join(struct.pack('<HHII', *t) for t in tags) + bytes(4 + 2*n)


def nowhere(order='<'):
    "A BigTIFF of 36 bytes whose directory lies where no file reaches"
    return (b'II+\0' if order == '<' else b'MM\0+') + struct.pack(order + 'HHQ', 8, 0, 2**64 - 1) + bytes(20)


def layers(side, n):
    "A progressive JPEG whose last scan comes again and again"
    out = io.BytesIO()
    Image.new('RGB', (side, side), 'brown').save(out, 'JPEG', progressive=True)
    content = out.getvalue()
    return content[:-2] + content[content.rindex(b'\xff\xda'):-2]*n + content[-2:]


def snapshot(folder): return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(Path(folder).rglob('*')) if f.is_file()}


@contextmanager
def serving(pages):
    "A server that answers with `pages[path]`: bytes, or a function of the handler"
    class Handler(BaseHTTPRequestHandler):
        hits = []
        def log_message(self, *args): pass
        def do_GET(self):
            self.hits.append(self.path)
            page = pages.get(self.path.partition('?')[0])
            with suppress(OSError):
                if callable(page): return page(self)
                self.send_response(200 if page is not None else 404)
                self.send_header('Content-Length', str(len(page or b'')))
                self.end_headers()
                self.wfile.write(page or b'')
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield f'http://127.0.0.1:{server.server_port}', Handler.hits
    finally:
        server.shutdown()
        server.server_close()


def redirect(to):
    def page(handler):
        handler.send_response(302)
        handler.send_header('Location', to)
        handler.send_header('Content-Length', '0')
        handler.end_headers()
    return page


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000): handler.wfile.write(bytes(65536))


def dripping(handler):
    handler.send_response(200)
    handler.send_header('Content-Length', '100')
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b'x')
        time.sleep(0.1)
