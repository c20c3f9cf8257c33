"The HTTP service: what it promises to those who mean well, and to the others"
import base64, contextlib, http.client, json, os, random, re, shutil, signal, socket, subprocess, sys, threading, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
import pytest
from PIL import Image
from bearcls.images import ImageError, load_image
from bearcls.inference.bundle import Bundle, write_bundle
from bearcls.sample.standins import colour_model
from hostile import layers, nowhere, tiles
from tiny_bundle import furs, make_bundle
from uploads import image_bytes

for module in ('fastapi', 'uvicorn', 'prometheus_client'): pytest.importorskip(module, reason=f'{module} is not installed')
from bearcls.inference.classifier import Classifier
from bearcls.monitor.log import LogRow, PredictionLog
from bearcls.monitor.watch import open_watch, watch_figures
from bearcls.rollout.registry import BundleWatch, Registry
from bearcls.serve import process as process_module, service as serve
from bearcls.serve.service import Settings, make_app, serving
from bearcls.serve.workers import Workers

root = Path(__file__).resolve().parents[1]

def form(*files, boundary='xyz'):
    part = lambda name, content: f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content + b'\r\n'
    return b''.join(part(*f) for f in files) + f'--{boundary}--\r\n'.encode(), f'multipart/form-data; boundary={boundary}'

def as_json(*files): return json.dumps(dict(images=[dict(name=n, data=base64.b64encode(c).decode()) for n, c in files])).encode(), 'application/json'

def ask(url, body=None, kind='image/jpeg', path='/predict', method=None, timeout=60, **headers):
    "Status, headers and the body, as an object if it is JSON"
    connection = http.client.HTTPConnection(url.split('//')[1], timeout=timeout)
    try:
        connection.request(method or ('GET' if body is None else 'POST'), path, body, {k.replace('_', '-'): v for k, v in headers.items()} | ({} if body is None or not kind else {'Content-Type': kind}))
        answer = connection.getresponse()
        content = answer.read()
        said = {k.lower(): v for k, v in answer.getheaders()}
        return answer.status, said, json.loads(content) if content and 'json' in said.get('content-type', '') else content
    finally: connection.close()

def label(url, colour='brown'):
    status, _, said = ask(url, image_bytes(furs[colour]))
    assert status == 200, said
    return said['results'][0]['label']

def is_problem(answer, status):
    got, headers, said = answer
    assert got == status, answer
    assert headers['content-type'] == 'application/problem+json'
    assert said['status'] == status and said['title'] and said['detail'] and said['type'] == 'about:blank'
    assert '/tmp' not in said['detail'] and 'Traceback' not in said['detail']
    if 'x-request-id' in headers: assert said['request_id'] == headers['x-request-id']
    return said['detail']

@pytest.fixture(scope='module')
def bundle(tmp_path_factory): return make_bundle(tmp_path_factory.mktemp('served')/'furs')

@pytest.fixture(scope='module')
def url(bundle):
    with serving(bundle, Settings(max_bytes=4_000_000, seconds_answer=60)) as address: yield address

@pytest.fixture(scope='module')
def impatient(bundle):
    "One that waits for slow clients no longer than a second"
    with serving(bundle, Settings(seconds_body=1, seconds_head=1, max_bytes=4_000_000)) as address: yield address

@pytest.fixture
def services(monkeypatch):
    "What stands behind each address that is served from now on"
    found, plain = [], serve.make_app
    def make(*args, **more):
        app = plain(*args, **more)
        found.append(app.state.service)
        return app
    monkeypatch.setattr(serve, 'make_app', make)
    return found

def wait_for(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'it did not come to pass'
        time.sleep(.05)

class Slow(Classifier):
    "One that needs its time"
    seconds = .2
    def predict_rows(self, named):
        time.sleep(self.seconds)
        return super().predict_rows(named)

class Held(Classifier):
    "One that answers when it is let, or when a minute has passed"
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.gate = threading.Event()
    def predict_rows(self, named):
        self.gate.wait(60)
        return super().predict_rows(named)

# --- what it does

def test_three_ways(url):
    two = [('brown.jpg', image_bytes(furs['brown'])), ('white.png', image_bytes('white', format='PNG'))]
    for body, kind in (form(*two), as_json(*two)):
        status, headers, said = ask(url, body, kind)
        assert status == 200 and [r['name'] for r in said['results']] == ['brown.jpg', 'white.png']
        assert [r['label'] for r in said['results']] == ['brown', 'white'] and all(r['trusted'] for r in said['results'])
        assert set(said['results'][0]['probabilities']) == set(furs) and len(headers['x-request-id']) == 32
    for kind in ('image/png', 'application/octet-stream'): assert ask(url, two[1][1], kind)[2]['results'][0]['label'] == 'white'

def test_one_bad_image_among_good_ones(url):
    status, _, said = ask(url, *form(('a.jpg', image_bytes('white')), ('notes.jpg', b'these are words'), ('empty.jpg', b''), ('b.jpg', image_bytes(furs['brown']))))
    assert status == 200 and [r['status'] for r in said['results']] == ['ok', 'failed', 'failed', 'ok']
    assert said['results'][1]['reason'] and said['results'][3]['label'] == 'brown'
    status, _, said = ask(url, json.dumps(dict(images=[dict(data='§'), dict(data=base64.b64encode(image_bytes('white')).decode())])).encode(), 'application/json')
    assert status == 200 and [r['status'] for r in said['results']] == ['failed', 'ok']

def test_a_data_address_is_taken(url):
    data = 'data:image/jpeg;base64,' + base64.b64encode(image_bytes(furs['black'])).decode()
    assert ask(url, json.dumps(dict(images=[dict(data=data)])).encode(), 'application/json')[2]['results'][0]['label'] == 'black'

def test_what_phones_send(url):
    sideways = Image.Exif()
    sideways[0x0112] = 6
    for content in (image_bytes('white', exif=sideways), image_bytes('white', format='WEBP'), image_bytes('white', (4000, 3000)), image_bytes('white', format='BMP')): assert ask(url, content)[2]['results'][0]['label'] == 'white'

def test_the_other_addresses(url, bundle):
    assert ask(url, path='/healthz')[2] == ask(url, path='/readyz')[2] == dict(status='ok')
    said = ask(url, path='/labels')[2]
    assert said['labels'] == list(furs) and len(said['model']) == 12
    schema = ask(url, path='/openapi.json')[2]
    assert {'/predict', '/labels', '/healthz', '/readyz', '/metrics'} == set(schema['paths'])
    assert schema['paths']['/predict']['post']['requestBody']['content']['application/json']['examples']
    for path in ('/docs', '/redoc'): is_problem(ask(url, path=path), 404)

def test_the_examples_of_the_description_work(url):
    body = ask(url, path='/openapi.json')[2]['paths']['/predict']['post']['requestBody']['content']['application/json']['examples']['two']['value']
    assert [r['status'] for r in ask(url, json.dumps(body).encode(), 'application/json')[2]['results']] == ['ok', 'ok']

def test_metrics(bundle):
    with serving(bundle) as address:
        for _ in range(3): label(address)
        ask(address, b'no image')
        ask(address, path='/nothing/here')
        text = ask(address, path='/metrics')[2].decode()
    assert 'bearcls_requests_total{path="/predict",status="200"} 3.0' in text and 'bearcls_requests_total{path="/predict",status="422"} 1.0' in text
    assert 'bearcls_requests_total{path="other",status="404"} 1.0' in text and 'bearcls_images_total{result="trusted"} 3.0' in text
    assert 'bearcls_request_seconds_count{path="/predict"} 4.0' in text

def test_names_of_requests(url):
    assert ask(url, path='/labels', X_Request_ID='order-17')[1]['x-request-id'] == 'order-17'
    for bad in ('two words', 'x'*65, '<script>', ''): assert re.fullmatch('[0-9a-f]{32}', ask(url, path='/labels', X_Request_ID=bad)[1]['x-request-id'])

# --- what is wrong is said

said_wrong = {'no_type': (b'x', None, 415), 'text': (b'x', 'text/plain', 415), 'curl_default': (b'x', 'application/x-www-form-urlencoded', 415), 'no_image': (b'these are words', 'image/jpeg', 422), 'empty': (b'', 'image/png', 422),
    'half': (image_bytes('white', (900, 900), 'PNG')[:900], 'image/png', 422), 'form_without_boundary': (b'x', 'multipart/form-data', 400), 'other_boundary': (form(('a', b'x'))[0], 'multipart/form-data; boundary=other', 400),
    'form_cut': (form(('a', b'x'))[0][:-12], 'multipart/form-data; boundary=xyz', 400), 'form_with_a_field': (b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--xyz--', 'multipart/form-data; boundary=xyz', 422),
    'empty_form': (b'--xyz--\r\n', 'multipart/form-data; boundary=xyz', 422), 'many_parts': (form(*[('a', b'')]*5000)[0], 'multipart/form-data; boundary=xyz', 413), 'parts_without_headers': (b'--xyz\r\n'*5000, 'multipart/form-data; boundary=xyz', 400),
    'no_json': (b'{', 'application/json', 400), 'nan': (b'{"images": NaN}', 'application/json', 400), 'deep': (b'['*1500, 'application/json', 400), 'very_deep': (b'{"a":'*400_000, 'application/json', 413), 'list': (b'[]', 'application/json', 422),
    'no_images': (b'{"images": []}', 'application/json', 422), 'other_field': (b'{"images": [{"data": "", "more": ""}]}', 'application/json', 422), 'number': (b'{"images": [{"data": 3}]}', 'application/json', 422),
    'no_base64': (b'{"images": [{"data": "%%%"}]}', 'application/json', 422), 'latin1': ('{"images": [{"data": "ä"}]}'.encode('latin-1'), 'application/json', 400), 'too_many': (as_json(*[('a', b'')]*33)[0], 'application/json', 413),
    'odd_boundary': (b'x', 'multipart/form-data; boundary*' + '9'*5000 + '=x', 400), 'long_name': (b'{"images": [{"name": "' + b'a'*3_000_000 + b'", "data": "AAAA"}]}', 'application/json', 422),
    'too_large': (b'x'*5_000_000, 'image/jpeg', 413), 'bomb': (image_bytes('white', (12_000, 10_000), 'PNG', compress_level=1), 'image/png', 422)}

@pytest.mark.parametrize('name', said_wrong)
def test_problems(url, name):
    body, kind, status = said_wrong[name]
    is_problem(ask(url, body, kind), status)
    assert label(url) == 'brown'

def test_wrong_addresses_and_methods(url):
    is_problem(ask(url, path='/nothing'), 404)
    is_problem(ask(url, path='/static/../serve.py'), 404)
    is_problem(ask(url, path='/static/cleaner.js'), 404)
    for method in ('PUT', 'DELETE', 'PATCH', 'TRACE', 'OPTIONS'):
        answer = ask(url, path='/predict', method=method)
        is_problem(answer, 405)
        assert answer[1]['allow'] == 'POST'
    is_problem(ask(url, image_bytes('white'), content_encoding='gzip'), 415)

def test_a_fault_inside_is_a_problem_too(bundle):
    class Faulty(Classifier):
        def predict_rows(self, named): raise KeyError('/srv/secret')
    with serving(Faulty(bundle, threads=1)) as address:
        is_problem(ask(address, image_bytes('white')), 500)
        assert ask(address, path='/healthz')[0] == 200

def test_words_of_decoders_stay_inside(url):
    assert is_problem(ask(url, image_bytes('white', (900, 900), 'PNG')[:900], 'image/png'), 422) == 'the file ends before the image does'

def test_probes_that_only_want_the_head(url):
    for path in ('/healthz', '/readyz', '/'): assert ask(url, path=path, method='HEAD')[0] == 200

@pytest.mark.parametrize('key', ['open sesame', ' sesame', 'sesame\n', 'schlüssel', 'ключ'], ids=['two_words', 'space', 'line', 'umlaut', 'cyrillic'])
def test_keys_that_no_header_carries_are_refused(key):
    with pytest.raises(ValueError, match='`api_key` must be letters'): Settings(api_key=key)

# --- files that are built to harm

harmful = {'comments': b'P1 1450 1450\n' + b'1#\n'*1_000_000, 'segments': image_bytes('white')[:2] + b'\xff\xe1\0\x09Exif\0\0x'*300_000 + image_bytes('white')[2:], 'tiles': tiles(600_000), 'layers': layers(4000, 60_000), 'nowhere': nowhere(), 'nowhere_either': nowhere('>')}

@pytest.mark.parametrize('name', harmful)
def test_files_that_would_take_minutes(url, name):
    assert len(harmful[name]) < 4_000_000
    is_problem(ask(url, harmful[name]), 422)  # opening it would have taken longer than the service waits
    with pytest.raises(ImageError): load_image(harmful[name])

def test_no_file_ends_a_thread(bundle):
    with serving(bundle, Settings(threads=1)) as address:
        for _ in range(2):
            for content in harmful.values(): is_problem(ask(address, content), 422)
        assert label(address) == 'brown' and ask(address, path='/readyz')[0] == 200

@pytest.mark.parametrize('error', [KeyError('/srv/secret'), MemoryError(), SystemExit(1), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_whatever_a_model_raises_the_thread_lives_on(bundle, error):
    class Faulty(Classifier):
        def predict_rows(self, named):
            if any(name == 'bad' for name, _ in named): raise error
            return super().predict_rows(named)
    with serving(Faulty(bundle, threads=1), Settings(threads=1)) as address:
        for _ in range(3): is_problem(ask(address, *form(('bad', image_bytes('white')))), 500)
        assert label(address) == 'brown' and ask(address, path='/healthz')[0] == 200

def test_who_waits_beside_a_bad_image_is_answered(bundle):
    class Faulty(Slow):
        def predict_rows(self, named):
            rows = super().predict_rows(named)
            if any(name == 'bad' for name, _ in named): raise KeyError(name)
            return rows[:-1] if any(name == 'short' for name, _ in named) else rows
    workers = Workers(Faulty(bundle, threads=1), 1, max_batch=8)
    try:
        futures = workers.ask([(name, image_bytes('white')) for name in ('good', 'bad', 'short', 'fine')])
        wait(futures, 60)
        assert [f.exception() is None for f in futures] == [True, False, False, True] and [futures[k].result()[0].prediction.label for k in (0, 3)] == ['white', 'white']
    finally: assert workers.close()

def test_a_thread_that_is_gone_is_noticed(bundle, services):
    with serving(bundle, Settings(threads=2)) as address:
        workers = services[-1].workers
        workers.threads[0] = threading.Thread(target=int)  # one that does not run
        wait_for(lambda: ask(address, path='/healthz')[0] == 503)
        for path in ('/healthz', '/readyz'): assert 'has ended' in is_problem(ask(address, path=path), 503)

# --- is it well?

def test_a_long_look_at_the_folder_is_no_illness(bundle, monkeypatch):
    looks = []
    def look(self):
        looks.append(time.sleep(3))
        return '', ''
    monkeypatch.setattr(BundleWatch, 'look', look)
    with serving(bundle, Settings(seconds_watch=.1, seconds_stuck=2)) as address:
        while len(looks) < 2:
            assert ask(address, path='/healthz')[0] == 200
            time.sleep(.05)

def test_a_look_that_fails_ends_no_watch(bundle, monkeypatch):
    looks = []
    def look(self):
        looks.append(1)
        raise RuntimeError('a surprise')
    monkeypatch.setattr(BundleWatch, 'look', look)
    with serving(bundle, Settings(seconds_watch=.05)) as address:
        wait_for(lambda: len(looks) > 2)
        assert ask(address, path='/healthz')[0] == 200

def test_a_loop_that_reads_nothing_is_noticed(bundle, services):
    with serving(bundle, Settings(seconds_stuck=1)) as address:
        assert label(address) == 'brown'
        hold = threading.Event()
        try:
            services[-1].loop.call_soon_threadsafe(hold.wait, 60)
            wait_for(lambda: services[-1].ill)
        finally: hold.set()
        assert 'not being read' in is_problem(ask(address, path='/healthz'), 503)

# --- those who do not keep to the rules

def raw(url, *pieces, pause=0., timeout=60):
    "Send bytes as they are; all that comes back until the connection is closed, or nothing comes for a while"
    host, port = url.split('//')[1].split(':')
    with socket.create_connection((host, int(port)), timeout=timeout) as s:
        out = b''
        try:
            for piece in pieces:
                s.sendall(piece)
                time.sleep(pause)
        except OSError: pass
        with contextlib.suppress(OSError):
            while more := s.recv(65536): out += more
        return out

head = b'POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\n'

def endless():
    for _ in range(2000): yield b'8000\r\n' + b'x'*32768 + b'\r\n'

hostile = {'drips_a_body': ([head + b'Content-Length: 100\r\n\r\n', *[b'x']*30], .1, 408), 'promises_more_than_it_sends': ([head + b'Content-Length: 1000\r\n\r\n', b'x'*10], 0, 408), 'drips_headers': ([bytes([b]) for b in head[:30]], .1, 408),
    'headers_without_end': ([b'GET / HTTP/1.1\r\nX: ' + b'x'*100_000], 0, 431), 'many_headers': ([b'GET / HTTP/1.1\r\n' + b'X: y\r\n'*20_000], 0, 431), 'chunks_without_end': ([head + b'Transfer-Encoding: chunked\r\n\r\n', *endless()], 0, 413),
    'claims_terabytes': ([head + b'Content-Length: 9999999999999\r\n\r\n', b'x'*10], 0, 413), 'two_lengths': ([head + b'Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello'], 0, 400), 'negative_length': ([head + b'Content-Length: -5\r\n\r\n'], 0, 400),
    'no_http': ([b'\x16\x03\x01\x02\x00\r\n\r\n'], 0, 400), 'length_and_chunks': ([head + b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'], 0, 400), 'chunk_of_nonsense': ([head + b'Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n'], 0, 400),
    'endless_to_nowhere': ([b'POST /nothing HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n', *endless()], 0, 404)}

@pytest.mark.parametrize('name', hostile)
def test_hostile_clients(url, impatient, name):
    pieces, pause, status = hostile[name]
    answer = raw(impatient if status == 408 else url, *pieces, pause=pause)
    if answer or name not in ('chunks_without_end', 'endless_to_nowhere'):  # who goes on sending may be cut off before the answer is read
        assert answer.startswith(b'HTTP/1.1 %d' % status) or name == 'length_and_chunks' and answer.startswith(b'HTTP/1.1 422'), answer[:200]  # RFC 9112 leaves that to the server
        assert b'application/problem+json' in answer
    assert label(url) == 'brown'

def test_expect_continue_is_refused_before_anything_is_sent(url):
    answer = raw(url, head + b'Expect: 100-continue\r\nContent-Length: 5000000\r\n\r\n')
    assert answer.startswith(b'HTTP/1.1 413')

def test_clients_who_leave(url):
    host, port = url.split('//')[1].split(':')
    for sent in (b'', b'POST', head + b'Content-Length: 50\r\n\r\n' + b'x'*20, head + b'Content-Length: %d\r\n\r\n' % len(image_bytes('white')) + image_bytes('white')):
        for _ in range(20):
            with socket.create_connection((host, int(port))) as s: s.sendall(sent)
    assert label(url) == 'brown'

def health(url):
    "The status of /healthz, or None where nobody answers"
    try: return ask(url, path='/healthz', timeout=5)[0]
    except (OSError, http.client.HTTPException): return None

def counted(url, what):
    "A number of /metrics; 0 where it is not there yet"
    text = ask(url, path='/metrics')[2].decode()
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(what)), 0.)

def test_who_leaves_in_the_middle_is_no_fault_of_the_service(bundle):
    with serving(bundle) as address:
        host, port = address.split('//')[1].split(':')
        for _ in range(3):
            with socket.create_connection((host, int(port))) as s: s.sendall(head + b'Content-Length: 5000\r\n\r\n' + b'x'*1000)
        wait_for(lambda: sum(counted(address, f'bearcls_requests_total{{path="/predict",status="{status}"}}') for status in (499, 500)) == 3)
        assert counted(address, 'bearcls_requests_total{path="/predict",status="499"}') == 3

def test_too_many_connections(bundle):
    with serving(bundle, Settings(max_connections=5)) as address:
        host, port = address.split('//')[1].split(':')
        held = [socket.create_connection((host, int(port))) for _ in range(5)]
        wait_for(lambda: health(address) == 503)
        is_problem(ask(address, path='/healthz'), 503)
        for s in held: s.close()
        wait_for(lambda: health(address) == 200)
        assert label(address) == 'brown'
        assert counted(address, 'bearcls_requests_total{path="none",status="503"}') >= 2  # refused before anything was read

def test_answers_that_come_too_late_leave_no_bytes_behind(bundle):
    with serving(held := Held(bundle, threads=1), Settings(threads=1, seconds_answer=.5)) as address, ThreadPoolExecutor(4) as pool:
        try:
            answers = list(pool.map(lambda _: ask(address, image_bytes(furs['brown'])), range(4)))
            assert {status for status, *_ in answers} <= {503, 504} and 504 in {status for status, *_ in answers}
            wait_for(lambda: b'bearcls_waiting_images 0.0' in ask(address, path='/metrics')[2])
        finally: held.gate.set()

def test_bodies_together_are_bounded(bundle, services):
    with serving(bundle, Settings(max_bytes=1_000_000, max_held=1_500_000, seconds_body=120)) as address:
        host, port = address.split('//')[1].split(':')
        held = [socket.create_connection((host, int(port))) for _ in range(2)]
        for s in held: s.sendall(head + b'Content-Length: 900000\r\n\r\n' + b'x'*700_000)
        body = b'no image'*20_000
        wait_for(lambda: services[-1].budget.held == 1_400_000)
        answer = ask(address, body)
        assert is_problem(answer, 503) and answer[1]['retry-after'] == '1'
        for s in held: s.close()
        wait_for(lambda: not services[-1].budget.held)
        is_problem(ask(address, body), 422)  # there is room again
        assert label(address) == 'brown'

# --- many at once

def test_no_answer_goes_to_the_wrong_question(url):
    names = list(furs)
    def visitor(k):
        order, seen = random.Random(k), []
        for _ in range(12):
            asked = [order.choice(names) for _ in range(order.randint(1, 3))]
            while (answer := ask(url, *form(*[(n, image_bytes(furs[n], (64 + k, 64))) for n in asked])))[0] == 503: time.sleep(.05)
            seen.append([r['label'] for r in answer[2]['results']] == asked == [r['name'] for r in answer[2]['results']])
        return all(seen)
    with ThreadPoolExecutor(12) as pool: assert all(pool.map(visitor, range(12)))

def test_busy(bundle):
    with serving(Slow(bundle, threads=1), Settings(threads=1, max_waiting=3, max_images=3)) as address, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(address, image_bytes('white')), range(20)))
        assert {a[0] for a in answers} == {200, 503}
        for a in answers:
            if a[0] == 503: assert is_problem(a, 503) and int(a[1]['retry-after']) >= 1
        assert all(a[2]['results'][0]['label'] == 'white' for a in answers if a[0] == 200)
        assert label(address) == 'brown'

def test_answers_that_take_too_long(bundle):
    with serving(held := Held(bundle, threads=1), Settings(threads=1, seconds_answer=.5)) as address:
        try: is_problem(ask(address, image_bytes('white')), 504)  # while the model is still at it
        finally: held.gate.set()

def test_a_thread_that_hangs_turns_the_health_red(bundle):
    with serving(held := Held(bundle, threads=1), Settings(threads=1, seconds_answer=.3, seconds_stuck=4)) as address:
        try:
            is_problem(ask(address, image_bytes('white')), 504)
            wait_for(lambda: health(address) == 503)
            for path in ('/healthz', '/readyz'): assert 'taking longer' in is_problem(ask(address, path=path), 503)
        finally: held.gate.set()

# --- keys and other sites

def test_key(bundle):
    with serving(bundle, Settings(api_key='Open-Sesame.1')) as address:
        for headers in ({}, dict(X_API_Key='wrong'), dict(Authorization='Bearer wrong'), dict(Authorization='Basic x')):
            answer = ask(address, image_bytes('white'), **headers)
            assert is_problem(answer, 401) and answer[1]['www-authenticate'] == 'Bearer'
        for path in ('/labels', '/metrics', '/nothing'): is_problem(ask(address, path=path), 401)
        for path in ('/healthz', '/readyz', '/', '/static/service.js', '/openapi.json'): assert ask(address, path=path)[0] == 200
        key = 'Open-Sesame.1'
        is_problem(ask(address, image_bytes('white'), X_API_Key='Grüße'.encode().decode('latin-1')), 401)
        assert ask(address, image_bytes('white'), X_API_Key=key)[0] == ask(address, image_bytes('white'), Authorization=f'Bearer {key}')[0] == 200
    assert 'Sesame' not in repr(Settings(api_key='Open-Sesame.1'))

def test_other_sites(url, bundle):
    assert 'access-control-allow-origin' not in ask(url, path='/labels', Origin='https://example.org')[1]
    with serving(bundle, Settings(origins=('https://example.org',), api_key='k')) as address:
        answer = ask(address, path='/predict', method='OPTIONS', Origin='https://example.org', Access_Control_Request_Method='POST', Access_Control_Request_Headers='x-api-key')
        assert answer[0] == 200 and answer[1]['access-control-allow-origin'] == 'https://example.org'
        assert ask(address, image_bytes('white'), Origin='https://example.org')[1]['access-control-allow-origin'] == 'https://example.org'
        assert 'access-control-allow-origin' not in ask(address, path='/healthz', Origin='https://example.com')[1]

# --- a new bundle

def patiently(change, *args):
    "Move or remove a folder; Windows refuses while somebody has a file in it open"
    for _ in range(200):
        try: return change(*args)
        except PermissionError: time.sleep(.05)
    change(*args)

def test_a_bundle_is_exchanged_under_load(tmp_path):
    place, other = make_bundle(tmp_path/'served'), tmp_path/'other'
    write_bundle(Bundle(['night', 'brown', 'white'], (64, 64)), colour_model({'night': furs['black'], 'brown': furs['brown'], 'white': furs['white']}), other, '# Other')
    first = tmp_path/'first'
    shutil.copytree(place, first)
    seen, over = [], threading.Event()
    def visitor(_):
        while not over.is_set(): seen.append(ask(url, image_bytes(furs['black'])))
    with serving(place, Settings(seconds_watch=.1)) as url, ThreadPoolExecutor(4) as pool:
        visitors = [pool.submit(visitor, k) for k in range(4)]
        try:
            for k in range(4):  # moved into place as `bearcls.export.convert` does it
                wait_for(lambda: len(seen) > 10*(k + 1))
                shutil.copytree((other, first)[k % 2], tmp_path/'new')
                patiently(place.rename, tmp_path/'old')
                time.sleep(.05)
                patiently((tmp_path/'new').rename, place)
                patiently(shutil.rmtree, tmp_path/'old')
                wait_for(lambda: counted(url, 'bearcls_bundles_total{result="changed"}') == k + 1)
            (place/'model.onnx').write_bytes(b'broken')
            wait_for(lambda: counted(url, 'bearcls_bundles_total{result="refused"}') >= 1)  # perhaps half of it was seen as well
            patiently(shutil.rmtree, place)
            n = len(seen)
            wait_for(lambda: len(seen) > n + 20)
        finally: over.set()
        for v in visitors: v.result()
        changed = counted(url, 'bearcls_bundles_total{result="changed"}')
    assert {a[0] for a in seen} == {200}
    labels = [a[2]['results'][0]['label'] for a in seen]
    assert set(labels) == {'black', 'night'} and labels[-1] == 'black' and changed == 4

def registry_of(folder, n):
    "Models that call black by names of their own, and which id has which name"
    registry, names = Registry(folder/'models'), {}
    for k in range(n):
        made = write_bundle(Bundle([f'black{k}', 'brown', 'white'], (64, 64)), colour_model(sharpness=60 + k), folder/f'made{k}')
        names[registry.add(made, who='Ana', why=f'number {k}').id] = f'black{k}'
    registry.promote(next(iter(names)))
    return registry, names

def test_a_hundred_champions_under_load(tmp_path):
    "No request fails, and each answer is that of the model that it names"
    registry, names = registry_of(tmp_path, 5)
    ids, seen, over = list(names), [], threading.Event()
    def visitor(_):
        while not over.is_set(): seen.append(ask(url, image_bytes(furs['black'], (64, 64))))
    with serving(f'{registry.folder}@champion', Settings(seconds_watch=.02)) as url, ThreadPoolExecutor(4) as pool:
        visitors = [pool.submit(visitor, k) for k in range(4)]
        try:
            for k in range(100):
                change = registry.rollback(why='back') if k % 4 == 3 else registry.promote(next(i for i in ids[k % 5:] + ids if i != registry.aliases()['champion']), why='next')
                n = len(seen)
                wait_for(lambda: any(a[0] == 200 and a[2]['results'][0]['model'] == change.model for a in seen[n:]))
        finally: over.set()
        for v in visitors: v.result()
        changed = counted(url, 'bearcls_bundles_total{result="changed"}')
    assert {a[0] for a in seen} == {200} and changed == 100
    told = Counter((a[2]['results'][0]['model'], a[2]['results'][0]['label']) for a in seen)
    assert all(names[model] == label for model, label in told) and {model for model, _ in told} == {*names}
    print(len(seen), 'answers', dict(told))

def test_an_alias_that_leads_nowhere(tmp_path, services):
    "Is refused once, and the model that answers goes on; an address without a model never starts"
    registry, names = registry_of(tmp_path, 2)
    first, second = names
    with serving(f'{registry.folder}@champion', Settings(seconds_watch=.02)) as url:
        for file in (tmp_path/'models'/'models'/second).iterdir():
            if file.name != 'record.json': file.unlink()
        (tmp_path/'models'/'models'/second/'bundle.json').write_text('{}')
        registry.promote(second)
        wait_for(lambda: counted(url, 'bearcls_bundles_total{result="refused"}') == 1)
        registry.set_alias('champion', None)
        wait_for(lambda: counted(url, 'bearcls_bundles_total{result="refused"}') == 2)
        assert label(url, 'black') == names[first]
        registry.promote(first)
        wait_for(lambda: services[-1].watch.refused == '')
        assert counted(url, 'bearcls_bundles_total{result="refused"}') == 2 and counted(url, 'bearcls_bundles_total{result="changed"}') == 0
    with pytest.raises(ValueError, match='is no model or alias'):
        with serving(f'{registry.folder}@nobody'): pass

# --- figures of a watch

def test_figures_of_a_watch(bundle, tmp_path, services):
    log, state = PredictionLog(tmp_path/'log.sqlite'), tmp_path/'log.sqlite.watch.json'
    now = time.time()
    log.write([LogRow('brown', .9, place='gate', time=now - k, answer=f'a{k}') for k in range(20)])
    with serving(bundle, Settings(figures=partial(watch_figures, state), seconds_figures=0)) as url:
        text = lambda: ask(url, path='/metrics')[2].decode()
        assert 'bearcls_monitor' not in text() and 'bearcls_requests_total' in text() and 'figures' in services[-1].trouble
        open_watch(log).update()
        assert counted(url, 'bearcls_monitor_answers{place="gate"}') == 20 and services[-1].trouble == ''
        assert 0 <= counted(url, 'bearcls_monitor_age_seconds{place=""}') < 600
        state.write_text('{"format": ')
        assert 'bearcls_monitor' not in text() and 'is not JSON' in services[-1].trouble
        assert label(url) == 'brown'

def test_figures_are_kept_for_a_while(bundle):
    calls = []
    def figures():
        calls.append(1)
        return [('bearcls_calls', 'How often', {'': len(calls)})]
    with serving(bundle, Settings(figures=figures, seconds_figures=60)) as url:
        for _ in range(5): assert counted(url, 'bearcls_calls{place=""}') == 1
    assert calls == [1]
    with pytest.raises(ValueError, match='`seconds_figures` must be at least 0'): Settings(seconds_figures=-1)

# --- processes

@contextlib.contextmanager
def running(bundle, tmp_path, workers=1, before='', settings=''):
    "`run_server` in a process of its own: its address, the process, and a function that reads its log"
    script, log = tmp_path/'service.py', tmp_path/'log'
    script.write_text(f'{before}\nfrom bearcls.serve.service import Settings, run_server\nif __name__ == "__main__": run_server({str(bundle)!r}, port=0, workers={workers}, settings=Settings({settings}))\n')
    env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    with open(log, 'w') as out: process = subprocess.Popen([sys.executable, str(script)], stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    lines = lambda event=None: [s for line in log.read_text().split('\n')[:-1] if line[:1] == '{' and (s := json.loads(line)) and event in (None, s['event'])]  # the last may be half a line
    try:
        wait_for(lambda: len(lines('ready')) >= workers or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        yield lines('listening')[0]['url'], process, lines
    finally:
        process.send_signal(signal.SIGTERM)
        try: process.wait(60)
        except subprocess.TimeoutExpired: process.kill()

def answers(url):
    "Does anybody answer there?"
    try: return bool(ask(url, path='/healthz', timeout=5))
    except (OSError, http.client.HTTPException): return False

posix = pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')

@posix
def test_processes_that_are_killed_come_back(bundle, tmp_path):
    with running(bundle, tmp_path, 2) as (url, process, lines):
        for _ in range(10): label(url)
        for k in (0, 1):
            wait_for(lambda: len(lines('request')) == 10 + 5*k)  # a request is counted and logged just after its answer
            os.kill([s['pid'] for s in lines('process_started') if s['number'] == k][-1], signal.SIGKILL)
            wait_for(lambda: len(lines('ready')) == 3 + k)
            for _ in range(5): assert label(url) == 'brown'
        wait_for(lambda: len(lines('request')) == 20)
        text = ask(url, path='/metrics')[2].decode()
        assert 'bearcls_requests_total{path="/predict",status="200"} 20.0' in text, 'the numbers of all processes, the dead ones too'
        assert len(lines('process_died')) == 2 and len(lines('request')) == 20
        log = lines()
    assert process.returncode == 0
    assert all({'time', 'level', 'process', 'event'} <= set(line) for line in log)

@posix
def test_all_processes_follow_an_alias(tmp_path):
    registry, names = registry_of(tmp_path, 2)
    first, second = names
    log, state = PredictionLog(tmp_path/'log.sqlite'), tmp_path/'log.sqlite.watch.json'
    log.write([LogRow('brown', .9, place='gate', time=time.time(), answer='a')])
    open_watch(log).update()
    with running(f'{registry.folder}@champion', tmp_path, 2, before='from functools import partial\nfrom bearcls.monitor.watch import watch_figures',
                 settings=f'seconds_watch=.1, figures=partial(watch_figures, {str(state)!r})') as (url, process, lines):
        assert label(url, 'black') == names[first]
        registry.promote(second)
        wait_for(lambda: len(lines('bundle_changed')) == 2)
        assert {label(url, 'black') for _ in range(20)} == {names[second]}
        os.kill(lines('process_started')[0]['pid'], signal.SIGKILL)
        wait_for(lambda: len(lines('ready')) == 3)
        registry.rollback()
        wait_for(lambda: len(lines('bundle_changed')) == 4)
        assert {label(url, 'black') for _ in range(20)} == {names[first]}
        for _ in range(5): assert counted(url, 'bearcls_monitor_answers{place="gate"}') == 1

@posix
def test_one_process_comes_back_too_and_nothing_secret_is_logged(bundle, tmp_path):
    with running(bundle, tmp_path, 1, settings='api_key="sesame"') as (url, process, lines):
        assert ask(url, *form(('private-name.jpg', image_bytes('white'))), X_API_Key='sesame')[0] == 200
        wait_for(lambda: lines('request'))
        os.kill(lines('process_started')[0]['pid'], signal.SIGKILL)
        assert ask(url, image_bytes('white'), X_API_Key='sesame', timeout=120)[0] == 200  # waits until it is back
        assert ask(url, b'no image', X_API_Key='sesame')[0] == 422
        wait_for(lambda: [line['images'] for line in lines('request')] == [1, 1, 1])
    log = (tmp_path/'log').read_text()
    assert 'private-name' not in log and 'sesame' not in log and '"images": 1' in log

@posix
def test_what_was_begun_is_answered_before_the_end(bundle, tmp_path):
    with running(bundle, tmp_path, settings='seconds_leaving=10, seconds_body=120') as (url, process, lines):
        host, port = url.split('//')[1].split(':')
        content = image_bytes('white')
        with socket.create_connection((host, int(port)), timeout=60) as s:
            s.sendall(head + b'Content-Length: %d\r\n\r\n' % len(content) + content[:200])
            time.sleep(.3)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: ask(url, path='/readyz')[0] == 503)
            assert 'about to stop' in is_problem(ask(url, path='/readyz'), 503)
            assert ask(url, path='/healthz')[0] == 200 and label(url) == 'brown'
            wait_for(lambda: not answers(url))
            s.sendall(content[200:])
            answer = b''
            while more := s.recv(65536): answer += more
            assert b'"label":"white"' in answer
        assert process.wait(60) == 0
        assert [line['all_answered'] for line in lines('stopped')] == [True]

@posix
def test_ctrl_c_reaches_all_processes_and_cuts_nothing_off(bundle, tmp_path):
    slow = f'''
import time, bearcls.inference.classifier as inference
from pathlib import Path
plain = inference.Classifier.predict_rows
def rows(self, named):
    Path({str(tmp_path/'begun')!r}).touch()
    time.sleep(4)
    return plain(self, named)
inference.Classifier.predict_rows = rows'''
    with running(bundle, tmp_path, before=slow, settings='seconds_leaving=.2') as (url, process, lines), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, url, image_bytes('white'))
        wait_for((tmp_path/'begun').exists)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        assert answer.result()[0] == 200 and process.wait(60) == 0
        assert 'Traceback' not in (tmp_path/'log').read_text()

@posix
def test_a_process_with_a_hanging_thread_is_replaced(bundle, tmp_path):
    hangs = '''
import time, bearcls.inference.classifier as inference
plain = inference.Classifier.predict_rows
def rows(self, named):
    while any(name == 'hang' for name, _ in named): time.sleep(1)
    return plain(self, named)
inference.Classifier.predict_rows = rows'''
    with running(bundle, tmp_path, before=hangs, settings='seconds_stuck=4, seconds_answer=3, seconds_leaving=.2, threads=2') as (url, process, lines):
        is_problem(ask(url, *form(('hang', image_bytes('white')))), 504)
        assert label(url) == 'brown'
        wait_for(lambda: len(lines('ready')) == 2, 120)
        assert label(url) == 'brown' and ask(url, path='/healthz')[0] == 200
        assert lines('stuck') and lines('process_died')

@posix
def test_processes_end_when_their_supervisor_is_killed(bundle, tmp_path):
    with running(bundle, tmp_path, settings='seconds_leaving=0') as (url, process, lines):
        child = lines('process_started')[0]['pid']
        process.kill()
        process.wait()
        wait_for(lambda: subprocess.run(['ps', '-o', 'stat=', '-p', str(child)], capture_output=True, text=True).stdout.strip()[:1] in ('', 'Z'))

def test_a_process_that_cannot_begin_says_so_with_any_uvicorn(bundle, tmp_path):
    code = f'''
import socket, sys, uvicorn
from bearcls.serve.service import Settings, serve_process
uvicorn.Server.run = lambda self, sockets=None: None  # as older ones return when the application could not be started
serve_process({str(bundle)!r}, Settings(), socket.socket(), {str(tmp_path)!r}, 0)'''
    assert subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': str(root)}, timeout=120).returncode == 3

def test_a_tight_time_for_answers_is_not_one_for_loading(bundle, monkeypatch):
    given, plain = [], process_module.load_classifier
    monkeypatch.setattr(process_module, 'load_classifier', lambda *args: given.append(args[-1]) or plain(*args))
    with serving(bundle, Settings(seconds_answer=.2)) as address: assert ask(address, path='/readyz')[0] == 200
    assert given == [30]

def test_the_log_can_be_written_in_any_alphabet(tmp_path):
    labels = 'from bearcls.serve.supervise import service_log, write_log; write_log(); service_log.info(dict(event="listening", labels=["\\u043c\\u0435\\u0434\\u0432\\u0435\\u0434\\u044c"]))'
    told = subprocess.run([sys.executable, '-c', labels], capture_output=True, env={**os.environ, 'PYTHONPATH': str(root), 'PYTHONIOENCODING': 'cp1252', 'PYTHONUTF8': '0'}, timeout=120)
    assert json.loads(told.stdout)['labels'] == ['медведь'] and not told.stderr

@posix
def test_mistakes_are_said_at_once(bundle, tmp_path):
    run = lambda code: subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)}, timeout=120)
    said = run(f'from bearcls.serve.service import run_server; run_server({str(tmp_path)!r})').stderr
    assert 'BundleError' in said and 'is no bundle' in said
    with socket.create_server(('127.0.0.1', 0)) as taken:
        said = run(f'from bearcls.serve.service import run_server; run_server({str(bundle)!r}, port={taken.getsockname()[1]})').stderr
        assert '`host` and `port`' in said
    for module in ('fastapi', 'uvicorn', 'prometheus_client'):
        said = run(f'import sys; sys.modules[{module!r}] = None\nfrom bearcls.serve.service import run_server; run_server({str(bundle)!r})').stderr
        assert "pip install 'bearcls[serve]'" in said and 'ImportError' in said

def test_the_room_needs_no_training_libraries():
    code = 'import sys, bearcls.serve.service; print(sorted({"torch", "fastai", "fastcore", "pandas", "fastapi", "uvicorn"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)}, check=True).stdout.strip() == '[]'

# --- what a machine tries

accepted = '[checks]\npositive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "503"]\n'  # 422: whether bytes are an image, no schema can say

@pytest.mark.parametrize('key', ['', 'sesame'], ids=['open', 'key'])
def test_schemathesis_finds_nothing(bundle, tmp_path, key):
    pytest.importorskip('schemathesis', reason='schemathesis is not installed')
    (tmp_path/'schemathesis.toml').write_text(accepted)
    with serving(bundle, Settings(api_key=key)) as url:
        command = [sys.executable, '-c', 'import sys; from schemathesis.cli import schemathesis; schemathesis()', '--config-file', 'schemathesis.toml', 'run', f'{url}/openapi.json', '--checks', 'all', '--max-examples', '60', '--seed', '1',
            '--phases', 'examples,coverage,fuzzing', '--no-color', *(['-H', f'Authorization: Bearer {key}'] if key else [])]
        env = {k: v for k, v in os.environ.items() if k != 'PYTHONWARNINGS'} | {'PYTHONIOENCODING': 'utf-8'}
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding='utf-8', env=env, timeout=300)
        assert told.returncode == 0 and re.search(r'[1-9]\d+ generated', told.stdout), told.stdout[-3000:] + told.stderr[-1000:]
        assert ask(url, path='/healthz')[0] == 200
