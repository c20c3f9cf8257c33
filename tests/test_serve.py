"The HTTP service: what it promises to those who mean well, and to the others"
import base64, contextlib, http.client, io, json, os, random, re, shutil, signal, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest
from PIL import Image
from bearcls.bundle import Bundle, colour_model, write_bundle
from bearcls.core import ImageError, load_image
from hostile import layers, tiles
from tiny_bundle import furs, make_bundle

for module in ('fastapi', 'uvicorn', 'prometheus_client'): pytest.importorskip(module, reason=f'{module} is not installed')
from bearcls.inference import Classifier
from bearcls.serve import Settings, make_app, serving

root = Path(__file__).resolve().parents[1]

def picture(colour, size=(200, 150), format='JPEG', **options):
    "A picture of one colour as the bytes of a file"
    out = io.BytesIO()
    Image.new('RGB', size, colour).save(out, format, **options)
    return out.getvalue()

def form(*files, boundary='xyz'):
    part = lambda name, content: f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content + b'\r\n'
    return b''.join(part(*f) for f in files) + f'--{boundary}--\r\n'.encode(), f'multipart/form-data; boundary={boundary}'

def as_json(*files): return json.dumps(dict(images=[dict(name=n, data=base64.b64encode(c).decode()) for n, c in files])).encode(), 'application/json'

def ask(url, body=None, kind='image/jpeg', path='/predict', method=None, timeout=30, **headers):
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
    status, _, said = ask(url, picture(furs[colour]))
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
    with serving(bundle, Settings(seconds_body=1, seconds_head=1, max_bytes=4_000_000, seconds_answer=20)) as address: yield address

# --- what it does

def test_three_ways(url):
    two = [('brown.jpg', picture(furs['brown'])), ('white.png', picture('white', format='PNG'))]
    for body, kind in (form(*two), as_json(*two)):
        status, headers, said = ask(url, body, kind)
        assert status == 200 and [r['name'] for r in said['results']] == ['brown.jpg', 'white.png']
        assert [r['label'] for r in said['results']] == ['brown', 'white'] and all(r['trusted'] for r in said['results'])
        assert set(said['results'][0]['probabilities']) == set(furs) and len(headers['x-request-id']) == 32
    for kind in ('image/png', 'application/octet-stream'): assert ask(url, two[1][1], kind)[2]['results'][0]['label'] == 'white'

def test_one_bad_picture_among_good_ones(url):
    status, _, said = ask(url, *form(('a.jpg', picture('white')), ('notes.jpg', b'these are words'), ('empty.jpg', b''), ('b.jpg', picture(furs['brown']))))
    assert status == 200 and [r['status'] for r in said['results']] == ['ok', 'failed', 'failed', 'ok']
    assert said['results'][1]['reason'] and said['results'][3]['label'] == 'brown'
    status, _, said = ask(url, json.dumps(dict(images=[dict(data='§'), dict(data=base64.b64encode(picture('white')).decode())])).encode(), 'application/json')
    assert status == 200 and [r['status'] for r in said['results']] == ['failed', 'ok']

def test_a_data_address_is_taken(url):
    data = 'data:image/jpeg;base64,' + base64.b64encode(picture(furs['black'])).decode()
    assert ask(url, json.dumps(dict(images=[dict(data=data)])).encode(), 'application/json')[2]['results'][0]['label'] == 'black'

def test_what_phones_send(url):
    sideways = Image.Exif()
    sideways[0x0112] = 6
    for content in (picture('white', exif=sideways), picture('white', format='WEBP'), picture('white', (4000, 3000)), picture('white', format='BMP')): assert ask(url, content)[2]['results'][0]['label'] == 'white'

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
        ask(address, b'no picture')
        ask(address, path='/nothing/here')
        text = ask(address, path='/metrics')[2].decode()
    assert 'bearcls_requests_total{path="/predict",status="200"} 3.0' in text and 'bearcls_requests_total{path="/predict",status="422"} 1.0' in text
    assert 'bearcls_requests_total{path="other",status="404"} 1.0' in text and 'bearcls_pictures_total{result="trusted"} 3.0' in text
    assert 'bearcls_request_seconds_count{path="/predict"} 4.0' in text

def test_names_of_requests(url):
    assert ask(url, path='/labels', X_Request_ID='order-17')[1]['x-request-id'] == 'order-17'
    for bad in ('two words', 'x'*65, '<script>', ''): assert re.fullmatch('[0-9a-f]{32}', ask(url, path='/labels', X_Request_ID=bad)[1]['x-request-id'])

# --- what is wrong is said

said_wrong = {'no_type': (b'x', None, 415), 'text': (b'x', 'text/plain', 415), 'curl_default': (b'x', 'application/x-www-form-urlencoded', 415), 'no_picture': (b'these are words', 'image/jpeg', 422), 'empty': (b'', 'image/png', 422),
    'half': (picture('white', (900, 900), 'PNG')[:900], 'image/png', 422), 'form_without_boundary': (b'x', 'multipart/form-data', 400), 'other_boundary': (form(('a', b'x'))[0], 'multipart/form-data; boundary=other', 400),
    'form_cut': (form(('a', b'x'))[0][:-12], 'multipart/form-data; boundary=xyz', 400), 'form_with_a_field': (b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--xyz--', 'multipart/form-data; boundary=xyz', 422),
    'empty_form': (b'--xyz--\r\n', 'multipart/form-data; boundary=xyz', 422), 'many_parts': (form(*[('a', b'')]*5000)[0], 'multipart/form-data; boundary=xyz', 413), 'parts_without_headers': (b'--xyz\r\n'*5000, 'multipart/form-data; boundary=xyz', 400),
    'no_json': (b'{', 'application/json', 400), 'nan': (b'{"images": NaN}', 'application/json', 400), 'deep': (b'['*1500, 'application/json', 400), 'very_deep': (b'{"a":'*400_000, 'application/json', 413), 'list': (b'[]', 'application/json', 422),
    'no_images': (b'{"images": []}', 'application/json', 422), 'other_field': (b'{"images": [{"data": "", "more": ""}]}', 'application/json', 422), 'number': (b'{"images": [{"data": 3}]}', 'application/json', 422),
    'no_base64': (b'{"images": [{"data": "%%%"}]}', 'application/json', 422), 'latin1': ('{"images": [{"data": "ä"}]}'.encode('latin-1'), 'application/json', 400), 'too_many': (as_json(*[('a', b'')]*33)[0], 'application/json', 413),
    'odd_boundary': (b'x', 'multipart/form-data; boundary*' + '9'*5000 + '=x', 400), 'long_name': (b'{"images": [{"name": "' + b'a'*3_000_000 + b'", "data": "AAAA"}]}', 'application/json', 422),
    'too_large': (b'x'*5_000_000, 'image/jpeg', 413), 'bomb': (picture('white', (12_000, 10_000), 'PNG', compress_level=1), 'image/png', 422)}

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
    is_problem(ask(url, picture('white'), content_encoding='gzip'), 415)

def test_a_fault_inside_is_a_problem_too(bundle):
    class Faulty(Classifier):
        def predict_rows(self, named): raise KeyError('/srv/secret')
    with serving(Faulty(bundle, threads=1)) as address:
        is_problem(ask(address, picture('white')), 500)
        assert ask(address, path='/healthz')[0] == 200

def test_words_of_decoders_stay_inside(url):
    assert is_problem(ask(url, picture('white', (900, 900), 'PNG')[:900], 'image/png'), 422) == 'the file ends before the picture does'

def test_probes_that_only_want_the_head(url):
    for path in ('/healthz', '/readyz', '/'): assert ask(url, path=path, method='HEAD')[0] == 200

@pytest.mark.parametrize('key', ['open sesame', ' sesame', 'sesame\n', 'schlüssel', 'ключ'], ids=['two_words', 'space', 'line', 'umlaut', 'cyrillic'])
def test_keys_that_no_header_carries_are_refused(key):
    with pytest.raises(ValueError, match='`api_key` must be letters'): Settings(api_key=key)

# --- files that are built to harm

harmful = {'comments': b'P1 1450 1450\n' + b'1#\n'*1_000_000, 'segments': picture('white')[:2] + b'\xff\xe1\0\x09Exif\0\0x'*300_000 + picture('white')[2:], 'tiles': tiles(600_000), 'layers': layers(4000, 60_000)}

@pytest.mark.parametrize('name', harmful)
def test_files_that_would_take_minutes(url, name):
    assert len(harmful[name]) < 4_000_000
    start = time.monotonic()
    is_problem(ask(url, harmful[name]), 422)
    assert time.monotonic() - start < 5
    with pytest.raises(ImageError): load_image(harmful[name])

# --- those who do not keep to the rules

def raw(url, *pieces, pause=0., timeout=10):
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
def test_hostile_clients(url, name):
    pieces, pause, status = hostile[name]
    answer = raw(url, *pieces, pause=pause)
    if answer or name not in ('chunks_without_end', 'endless_to_nowhere'):  # who goes on sending may be cut off before the answer is read
        assert answer.startswith(b'HTTP/1.1 %d' % status) or name == 'length_and_chunks' and answer.startswith(b'HTTP/1.1 422'), answer[:200]  # RFC 9112 leaves that to the server
        assert b'application/problem+json' in answer
    assert label(url) == 'brown'

def test_expect_continue_is_refused_before_anything_is_sent(url):
    answer = raw(url, head + b'Expect: 100-continue\r\nContent-Length: 5000000\r\n\r\n')
    assert answer.startswith(b'HTTP/1.1 413')

def test_clients_who_leave(url):
    host, port = url.split('//')[1].split(':')
    for sent in (b'', b'POST', head + b'Content-Length: 50\r\n\r\n' + b'x'*20, head + b'Content-Length: %d\r\n\r\n' % len(picture('white')) + picture('white')):
        for _ in range(20):
            with socket.create_connection((host, int(port))) as s: s.sendall(sent)
    assert label(url) == 'brown'

def test_too_many_connections(bundle):
    with serving(bundle, Settings(max_connections=5)) as address:
        host, port = address.split('//')[1].split(':')
        held = [socket.create_connection((host, int(port))) for _ in range(5)]
        time.sleep(.2)
        is_problem(ask(address, path='/healthz'), 503)
        for s in held: s.close()
        time.sleep(.2)
        assert label(address) == 'brown'
        assert b'bearcls_requests_total{path="none",status="503"} 1.0' in ask(address, path='/metrics')[2]  # refused before anything was read

def test_answers_that_come_too_late_leave_no_bytes_behind(bundle):
    class Slow(Classifier):
        def predict_rows(self, named):
            time.sleep(1.5)
            return super().predict_rows(named)
    with serving(Slow(bundle, threads=1), Settings(threads=1, seconds_answer=.3)) as address, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(address, picture(furs['brown'])), range(4)))
        assert {status for status, *_ in answers} <= {503, 504} and 504 in {status for status, *_ in answers}
        assert b'bearcls_waiting_pictures 0.0' in ask(address, path='/metrics')[2]

def test_bodies_together_are_bounded(bundle):
    with serving(bundle, Settings(max_bytes=1_000_000, max_held=1_500_000, seconds_body=3)) as address:
        host, port = address.split('//')[1].split(':')
        held = [socket.create_connection((host, int(port))) for _ in range(2)]
        for s in held: s.sendall(head + b'Content-Length: 900000\r\n\r\n' + b'x'*700_000)
        time.sleep(.3)
        answer = ask(address, picture('white', (600, 600), 'BMP')[:200_000])
        assert is_problem(answer, 503) and answer[1]['retry-after'] == '1'
        for s in held: s.close()
        time.sleep(.3)
        assert label(address) == 'brown'

# --- many at once

def test_no_answer_goes_to_the_wrong_question(url):
    names = list(furs)
    def visitor(k):
        order, seen = random.Random(k), []
        for _ in range(12):
            asked = [order.choice(names) for _ in range(order.randint(1, 3))]
            while (answer := ask(url, *form(*[(n, picture(furs[n], (64 + k, 64))) for n in asked])))[0] == 503: time.sleep(.05)
            seen.append([r['label'] for r in answer[2]['results']] == asked == [r['name'] for r in answer[2]['results']])
        return all(seen)
    with ThreadPoolExecutor(12) as pool: assert all(pool.map(visitor, range(12)))

class Slow(Classifier):
    "One that needs its time"
    seconds = .2
    def predict_rows(self, named):
        time.sleep(self.seconds)
        return super().predict_rows(named)

def test_busy(bundle):
    with serving(Slow(bundle, threads=1), Settings(threads=1, max_waiting=3, max_pictures=3)) as address, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(address, picture('white')), range(20)))
        assert {a[0] for a in answers} == {200, 503}
        for a in answers:
            if a[0] == 503: assert is_problem(a, 503) and int(a[1]['retry-after']) >= 1
        assert all(a[2]['results'][0]['label'] == 'white' for a in answers if a[0] == 200)
        assert label(address) == 'brown'

def test_answers_that_take_too_long(bundle):
    class Lazy(Slow): seconds = 8
    with serving(Lazy(bundle, threads=1), Settings(threads=1, seconds_answer=.5)) as address:
        start = time.monotonic()
        is_problem(ask(address, picture('white')), 504)
        assert time.monotonic() - start < 7

def test_a_thread_that_hangs_turns_the_health_red(bundle):
    class Hangs(Slow): seconds = 6
    with serving(Hangs(bundle, threads=1), Settings(threads=1, seconds_answer=.3, seconds_stuck=.6)) as address:
        is_problem(ask(address, picture('white')), 504)
        time.sleep(1.5)
        for path in ('/healthz', '/readyz'): assert 'taking longer' in is_problem(ask(address, path=path), 503)

# --- keys and other sites

def test_key(bundle):
    with serving(bundle, Settings(api_key='Open-Sesame.1')) as address:
        for headers in ({}, dict(X_API_Key='wrong'), dict(Authorization='Bearer wrong'), dict(Authorization='Basic x')):
            answer = ask(address, picture('white'), **headers)
            assert is_problem(answer, 401) and answer[1]['www-authenticate'] == 'Bearer'
        for path in ('/labels', '/metrics', '/nothing'): is_problem(ask(address, path=path), 401)
        for path in ('/healthz', '/readyz', '/', '/static/service.js', '/openapi.json'): assert ask(address, path=path)[0] == 200
        key = 'Open-Sesame.1'
        is_problem(ask(address, picture('white'), X_API_Key='Grüße'.encode().decode('latin-1')), 401)
        assert ask(address, picture('white'), X_API_Key=key)[0] == ask(address, picture('white'), Authorization=f'Bearer {key}')[0] == 200
    assert 'Sesame' not in repr(Settings(api_key='Open-Sesame.1'))

def test_other_sites(url, bundle):
    assert 'access-control-allow-origin' not in ask(url, path='/labels', Origin='https://example.org')[1]
    with serving(bundle, Settings(origins=('https://example.org',), api_key='k')) as address:
        answer = ask(address, path='/predict', method='OPTIONS', Origin='https://example.org', Access_Control_Request_Method='POST', Access_Control_Request_Headers='x-api-key')
        assert answer[0] == 200 and answer[1]['access-control-allow-origin'] == 'https://example.org'
        assert ask(address, picture('white'), Origin='https://example.org')[1]['access-control-allow-origin'] == 'https://example.org'
        assert 'access-control-allow-origin' not in ask(address, path='/healthz', Origin='https://example.com')[1]

# --- a new bundle

def test_a_bundle_is_exchanged_under_load(tmp_path):
    place, other = make_bundle(tmp_path/'served'), tmp_path/'other'
    write_bundle(Bundle(['night', 'brown', 'white'], (64, 64)), colour_model({'night': furs['black'], 'brown': furs['brown'], 'white': furs['white']}), other, '# Other')
    first = tmp_path/'first'
    shutil.copytree(place, first)
    seen, over = [], threading.Event()
    def visitor(_):
        while not over.is_set(): seen.append(ask(url, picture(furs['black'])))
    with serving(place, Settings(seconds_watch=.1)) as url, ThreadPoolExecutor(4) as pool:
        visitors = [pool.submit(visitor, k) for k in range(4)]
        time.sleep(.5)
        for k in range(4):  # moved into place as `bearcls.export` does it
            shutil.copytree((other, first)[k % 2], tmp_path/'new')
            place.rename(tmp_path/'old')
            time.sleep(.05)
            (tmp_path/'new').rename(place)
            shutil.rmtree(tmp_path/'old')
            time.sleep(.5)
        (place/'model.onnx').write_bytes(b'broken')
        time.sleep(.5)
        shutil.rmtree(place)
        time.sleep(.3)
        over.set()
        for v in visitors: v.result()
        metrics = ask(url, path='/metrics')[2].decode()
    assert {a[0] for a in seen} == {200} and len(seen) > 50
    labels = [a[2]['results'][0]['label'] for a in seen]
    assert set(labels) == {'black', 'night'} and labels[-1] == 'black'
    assert 'bearcls_bundles_total{result="changed"} 4.0' in metrics and 'bearcls_bundles_total{result="refused"} 1.0' in metrics

# --- processes

@contextlib.contextmanager
def running(bundle, tmp_path, workers=1, before='', settings=''):
    "`run_server` in a process of its own: its address, the process, and a function that reads its log"
    script, log = tmp_path/'service.py', tmp_path/'log'
    script.write_text(f'{before}\nfrom bearcls.serve import Settings, run_server\nif __name__ == "__main__": run_server({str(bundle)!r}, port=0, workers={workers}, settings=Settings({settings}))\n')
    env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    with open(log, 'w') as out: process = subprocess.Popen([sys.executable, str(script)], stdout=out, stderr=subprocess.STDOUT, env=env)
    lines = lambda event=None: [s for line in log.read_text().splitlines() if line[:1] == '{' and (s := json.loads(line)) and event in (None, s['event'])]
    try:
        wait_for(lambda: len(lines('ready')) >= workers or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        yield lines('listening')[0]['url'], process, lines
    finally:
        process.send_signal(signal.SIGTERM)
        try: process.wait(30)
        except subprocess.TimeoutExpired: process.kill()

def answers(url):
    "Does anybody answer there?"
    try: return bool(ask(url, path='/healthz', timeout=5))
    except (OSError, http.client.HTTPException): return False

def wait_for(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'it did not come to pass'
        time.sleep(.05)

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
def test_one_process_comes_back_too_and_nothing_secret_is_logged(bundle, tmp_path):
    with running(bundle, tmp_path, 1, settings='api_key="sesame"') as (url, process, lines):
        assert ask(url, *form(('private-name.jpg', picture('white'))), X_API_Key='sesame')[0] == 200
        os.kill(lines('process_started')[0]['pid'], signal.SIGKILL)
        assert ask(url, picture('white'), X_API_Key='sesame')[0] == 200  # waits until it is back
    log = (tmp_path/'log').read_text()
    assert 'private-name' not in log and 'sesame' not in log and '"pictures": 1' in log

@posix
def test_what_was_begun_is_answered_before_the_end(bundle, tmp_path):
    with running(bundle, tmp_path, settings='seconds_leaving=4') as (url, process, lines):
        host, port = url.split('//')[1].split(':')
        content = picture('white')
        with socket.create_connection((host, int(port)), timeout=20) as s:
            s.sendall(head + b'Content-Length: %d\r\n\r\n' % len(content) + content[:200])
            time.sleep(.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(.5)
            assert 'about to stop' in is_problem(ask(url, path='/readyz'), 503)
            assert ask(url, path='/healthz')[0] == 200 and label(url) == 'brown'
            wait_for(lambda: not answers(url))
            s.sendall(content[200:])
            answer = b''
            while more := s.recv(65536): answer += more
            assert b'"label":"white"' in answer
        assert process.wait(20) == 0

@posix
def test_a_process_with_a_hanging_thread_is_replaced(bundle, tmp_path):
    hangs = '''
import time, bearcls.inference as inference
plain = inference.Classifier.predict_rows
def rows(self, named):
    while any(name == 'hang' for name, _ in named): time.sleep(1)
    return plain(self, named)
inference.Classifier.predict_rows = rows'''
    with running(bundle, tmp_path, before=hangs, settings='seconds_stuck=1, seconds_answer=.5, seconds_leaving=.2, threads=2') as (url, process, lines):
        is_problem(ask(url, *form(('hang', picture('white')))), 504)
        assert label(url) == 'brown'
        wait_for(lambda: len(lines('ready')) == 2)
        assert label(url) == 'brown' and ask(url, path='/healthz')[0] == 200
        assert lines('stuck') and lines('process_died')

@posix
def test_processes_end_when_their_supervisor_is_killed(bundle, tmp_path):
    with running(bundle, tmp_path, settings='seconds_leaving=0') as (url, process, lines):
        child = lines('process_started')[0]['pid']
        process.kill()
        process.wait()
        wait_for(lambda: subprocess.run(['ps', '-o', 'stat=', '-p', str(child)], capture_output=True, text=True).stdout.strip()[:1] in ('', 'Z'))

@posix
def test_mistakes_are_said_at_once(bundle, tmp_path):
    run = lambda code: subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)}, timeout=60)
    said = run(f'from bearcls.serve import run_server; run_server({str(tmp_path)!r})').stderr
    assert 'BundleError' in said and 'is no bundle' in said
    with socket.create_server(('127.0.0.1', 0)) as taken:
        said = run(f'from bearcls.serve import run_server; run_server({str(bundle)!r}, port={taken.getsockname()[1]})').stderr
        assert '`host` and `port`' in said
    for module in ('fastapi', 'uvicorn', 'prometheus_client'):
        said = run(f'import sys; sys.modules[{module!r}] = None\nfrom bearcls.serve import run_server; run_server({str(bundle)!r})').stderr
        assert "pip install 'bearcls[serve]'" in said and 'ImportError' in said

def test_the_room_needs_no_training_libraries():
    code = 'import sys, bearcls.serve; print(sorted({"torch", "fastai", "fastcore", "pandas", "fastapi", "uvicorn"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)}, check=True).stdout.strip() == '[]'

# --- what a machine tries

accepted = '[checks]\npositive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "503"]\n'  # 422: whether bytes are a picture, no schema can say

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
