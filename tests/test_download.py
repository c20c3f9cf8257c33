"Hostile addresses, answers and accidents around download: what would make bad reading in a notebook"
import asyncio, errno, os, signal, socket, subprocess, sys, threading, time, zlib
import pytest
import bearcls.gather.fetch as fetching
from hostile import LOCAL, bomb, dripping, endless, nowhere, image_bytes, redirect, serving, several_hosts, snapshot
from bearcls.gather import addresses, download
from bearcls.core import DataError, sha256
from bearcls.images import load_image
from bearcls.manifest import read_manifest
from bearcls.folders import image_files
from bearcls.gather.download import download_images
from bearcls.gather.gathering import gather
from bearcls.gather.fetch import Fetched, FetchError, FetchLimits, fetch, fetch_many, run_aside
from bearcls.fingerprints import fingerprint
from bearcls.sample.loopback import Reply, LoopbackWeb, moved
from bearcls.gather.search import SearchError, SearchResult, search_images
from bearcls.verify.report import check_images

def test_hostile_answers_become_rows(tmp_path):
    pages = {'/good': image_bytes(), '/bomb.png': bomb(), '/endless': endless, '/drip': dripping, '/text.jpg': b'hello', '/eps.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n',
             '/empty.jpg': b'', '/loop': redirect('/loop'), '/file': redirect('file:///etc/hostname'), '/long': redirect('/x' * 40000)}
    with serving(pages) as (site, hits):
        start = time.monotonic()
        rows = download_images(tmp_path/'d', [site + p for p in pages], 'a', timeout=2, max_bytes=500_000, allow_private=LOCAL)
        assert time.monotonic() - start < 30
    got = {r.url.removeprefix(site): (r.status, r.reason) for r in rows}
    assert got.pop('/good') == ('ok', '')
    assert {s for s, _ in got.values()} == {'failed'} and all(reason for _, reason in got.values())
    for path, words in {'/bomb.png': 'pixels', '/endless': 'more than 500,000 bytes', '/drip': 'within 2 seconds', '/text.jpg': 'no image', '/eps.jpg': 'no image',
                        '/empty.jpg': 'empty', '/loop': 'redirects', '/file': 'only http and https'}.items(): assert words in got[path][1], (path, got[path])
    assert [f.name for f in (tmp_path/'d'/'a').iterdir()] == [sha256(image_bytes())[:16] + '.jpg']


def test_one_image_ends_no_run_whatever_a_decoder_raises(tmp_path, monkeypatch):
    plain = download.load_image
    def odd(data, **more):
        if data == image_bytes(1): raise zlib.error('a surprise')
        if data == image_bytes(2): raise MemoryError
        return plain(data, **more)
    monkeypatch.setattr(download, 'load_image', odd)
    pages = {'/0': image_bytes(0), '/1': image_bytes(1), '/2': image_bytes(2), '/nowhere': nowhere(), '/3': image_bytes(3)}
    with serving(pages) as (site, _): rows = download_images(tmp_path/'d', [site + p for p in pages], 'a', allow_private=LOCAL)
    assert [r.status for r in rows] == ['ok', 'failed', 'failed', 'failed', 'ok'] and all(r.reason for r in rows if r.status == 'failed')


@pytest.mark.parametrize('url', ['http://127.0.0.1:9/', 'http://localhost/', 'http://[::1]/', 'http://2130706433/', 'http://0x7f000001/', 'http://localhost./', 'http://a.localhost/', 'http://169.254.169.254/', 'http://10.0.0.1/', 'http://0/',
                                 'http://[::ffff:127.0.0.1]/', 'ftp://example.org/a.jpg', 'file:///etc/hostname', 'javascript:alert(1)', '', '//', 'http://', 'http://[', 'http://\udcff/', 'not an address',
                                 'http://127.0.0.1/' + 'a'*10_000])
def test_unwanted_addresses_are_refused_unvisited(tmp_path, url):
    [row] = download_images(tmp_path/'d', [url], 'a', timeout=5)
    assert row.status == 'failed' and row.reason
    assert list((tmp_path/'d'/'a').iterdir()) == []


def test_long_address_on_an_allowed_host(tmp_path):
    with serving({'/' + 'a'*10_000: image_bytes()}) as (site, hits): [row] = download_images(tmp_path, [f'{site}/{"a"*10_000}'], 'a', allow_private=LOCAL)
    assert row.status == 'ok' or row.reason


def test_redirect_into_a_private_network_is_refused(tmp_path):
    with serving({'/secret': image_bytes()}) as (inner, inner_hits):
        with serving({'/a': redirect(inner.replace('127.0.0.1', 'localhost') + '/secret')}) as (site, _):
            [row] = download_images(tmp_path, [f'{site}/a'], 'a', allow_private=LOCAL)
        assert row.status == 'failed' and 'private network' in row.reason and inner_hits == []


@several_hosts
def test_a_name_that_answers_differently_the_second_time_reaches_nothing(tmp_path, monkeypatch):
    "127.0.0.2 plays a public address; the second answer leads to 127.0.0.1, where nothing must arrive"
    questions, real = [], addresses.is_public
    def two_faced(host, port, *args):
        questions.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.0.2' if len(questions) == 1 else '127.0.0.1', port))]
    monkeypatch.setattr(addresses, 'is_public', lambda address: address == '127.0.0.2' or real(address))
    monkeypatch.setattr(socket, 'getaddrinfo', two_faced)
    seen = []
    def page(request):
        seen.append(request.headers['Host'])
        return Reply(503, headers={'Connection': 'close', 'Retry-After': '0'})
    with LoopbackWeb({'/a': page}, hosts=['127.0.0.2']) as web, LoopbackWeb({'/a': page}) as inner:
        monkeypatch.setattr(socket, 'getaddrinfo', lambda host, port, *args: two_faced(host, web.port if not questions else inner.port))
        [row] = download_images(tmp_path, [f'http://two-faced.test:{web.port}/a'], 'a')
        assert inner.hits.total() == 0
    assert row.status == 'failed' and seen and questions


def test_a_private_answer_of_a_name_server_is_refused(tmp_path, monkeypatch):
    with LoopbackWeb({'/a': image_bytes()}) as web:
        monkeypatch.setattr(socket, 'getaddrinfo', lambda host, port, *args: [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (ip, web.port)) for ip in ('93.184.215.14', '127.0.0.1')])
        [row] = download_images(tmp_path, [f'http://innocent.test:{web.port}/a'], 'a')
        assert web.hits.total() == 0
    assert row.reason == 'innocent.test is on a private network; `allow_private` would permit it'


@pytest.mark.parametrize('label', ['..', '.', '', 'a/b', 'a\\b', '/abs', '.hidden', 'C:x', ' a', 'a\n', 'nul\0', 'CON', 'nul.txt', 'Lpt1', 'bear.', '\udcff', 'a\u202eb', None])
def test_labels_cannot_leave_the_folder(tmp_path, label):
    with pytest.raises(DataError): download_images(tmp_path/'d', [], label)
    assert not (tmp_path/'d').exists()


def test_names_from_the_web_never_reach_the_disk(tmp_path):
    with serving({'/../../evil.jpg': image_bytes(), '/%2e%2e%2fevil.jpg': image_bytes(1)}) as (site, _):
        rows = download_images(tmp_path/'d'/'e', [f'{site}/../../evil.jpg', f'{site}/%2e%2e%2fevil.jpg'], 'a', allow_private=LOCAL)
    assert sorted(snapshot(tmp_path)) == sorted(['d/e/manifest.csv', *{f'd/e/{r.file}' for r in rows if r.file}])


@pytest.mark.parametrize('what', ['aside', 'note', 'finish'])
def test_no_space_is_one_clear_error_and_leaves_no_half_file(tmp_path, monkeypatch, what):
    pages = {f'/{n}': image_bytes(n) for n in range(6)}
    real, calls = getattr(download._Workplace, what), []
    def full(self, *args):
        calls.append(args)
        if len(calls) > 3 or what == 'finish': raise OSError(errno.ENOSPC, 'No space left on device')
        return real(self, *args)
    monkeypatch.setattr(download._Workplace, what, full)
    with LoopbackWeb(pages) as web:
        urls = [web.url + path for path in pages]
        whole = snapshot(tmp_path)
        with pytest.raises(DataError, match='d cannot be written: No space left'): download_images(tmp_path/'d', urls, 'a', allow_private=LOCAL, n_connections=1)
        assert all(sha256(f)[:16] == f.stem for f in (tmp_path/'d'/'a').iterdir())
        assert whole == {} and not list((tmp_path/'d').rglob('*.part'))
        monkeypatch.setattr(download._Workplace, what, real)
        rows = download_images(tmp_path/'d', urls, 'a', allow_private=LOCAL)
    assert [r.status for r in rows] == ['ok']*6 and sorted(snapshot(tmp_path/'d')) == sorted(['manifest.csv', *(r.file for r in rows)])


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='permissions do not bind this user')
def test_no_permission_is_one_clear_error(tmp_path):
    (tmp_path/'d').mkdir(mode=0o500)
    with pytest.raises(DataError, match='cannot be written'): download_images(tmp_path/'d', [], 'a')


def test_a_label_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    def denied(source, to): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(download.os, 'replace', denied)
    with serving({'/a': image_bytes()}) as (site, _), pytest.raises(DataError, match='Permission denied'): download_images(tmp_path/'d', [f'{site}/a'], 'a', allow_private=LOCAL)
    monkeypatch.undo()
    assert list((tmp_path/'d'/'a').iterdir()) == []


def test_unfinished_work_is_never_cleared_through_a_link(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.part').write_text('keep')
    (tmp_path/'d').mkdir()
    try: (tmp_path/'d'/'.bearcls-download').symlink_to(tmp_path/'mine', target_is_directory=True)
    except OSError: pytest.skip('no links here')
    with pytest.raises(DataError, match='is a link'): download_images(tmp_path/'d', [], 'a')
    assert (tmp_path/'mine'/'thesis.part').read_text() == 'keep'


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path/'a').mkdir()
    mine = {'a/notes.txt': b'1', 'a/.x.part': b'2', '.hidden.part': b'3', 'a/photo.jpg': image_bytes(3)}
    for name, data in mine.items(): (tmp_path/name).write_bytes(data)
    with serving({'/a': image_bytes()}) as (site, _): [row] = download_images(tmp_path, [f'{site}/a'], 'a', allow_private=LOCAL)
    after = snapshot(tmp_path)
    assert {k: after[k] for k in mine} == mine and set(after) == {*mine, row.file, 'manifest.csv'}


# --- killed at any moment

killed = """
import itertools, os, signal, sys, time
from bearcls.gather import download
moment, nth, dest, *urls = sys.argv[1:]
calls = itertools.count(1)
def deadly(real, before):
    def call(*args, **kwargs):
        mine = next(calls)  # each call knows its own number: several threads are in here at once
        if mine == int(nth) and before: os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if mine == int(nth): os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
name, _, when = moment.partition(' ')
holder = download.os if name in ('replace', 'unlink') else download if name == 'write_manifest' else download._Workplace
setattr(holder, name, deadly(getattr(holder, name), when == 'before'))
download.download_images(dest, urls, 'a', allow_private=True, n_connections=4, tries=1)
"""
mixed = {**{f'/{n}': image_bytes(n) for n in range(20)}, '/copy': image_bytes(3), '/gone': Reply(404), '/moved': moved('/5'), '/cut': Reply(body=image_bytes(30), send=300), '/text': b'<html>', '/21': image_bytes(21)}
posix = pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGKILL')

@posix
@pytest.mark.parametrize('moment, nth', [('aside before', 1), ('aside after', 5), ('note before', 4), ('note after', 9), ('replace before', 7), ('replace after', 12), ('replace before', 21),
                                         ('write_manifest before', 1), ('write_manifest after', 1), ('finish before', 1), ('replace after', 22), ('clear before', 2)])
def test_killed_between_two_steps_and_run_again(tmp_path, moment, nth):
    with LoopbackWeb(mixed, delay=(0.01, 0.01)) as web:
        urls = [web.url + path for path in mixed]
        download_images(tmp_path/'whole', urls, 'a', allow_private=LOCAL, tries=1)
        done = subprocess.run([sys.executable, '-c', killed, moment, str(nth), str(tmp_path/'cut'), *urls], env={**os.environ, 'TQDM_DISABLE': '1'}, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        for f in (tmp_path/'cut').glob('a/*'): assert sha256(f)[:16] == f.stem
        left = download._left_over(tmp_path/'cut'/'.bearcls-download'/'journal.jsonl', tmp_path/'cut') or read_manifest(tmp_path/'cut')
        web.hits.clear()
        download_images(tmp_path/'cut', urls, 'a', allow_private=LOCAL, tries=1)
        assert not {r.url.removeprefix(web.url) for r in left if r.status == 'ok'} & (set(web.hits) - {'/5'})
    assert snapshot(tmp_path/'cut') == snapshot(tmp_path/'whole')
    assert not (tmp_path/'cut'/'.bearcls-download').exists()


plain = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from bearcls.gather.download import download_images; download_images(sys.argv[1], sys.argv[2:], 'a', allow_private=True, n_connections=3, tries=1)"

@posix  # the child heeds Ctrl-C even where the tests run in the background, and inherit that it is ignored
@pytest.mark.parametrize('signal_name', ['SIGKILL', 'SIGINT'])
@pytest.mark.parametrize('n_hits', [1, 9, 17, 25])
def test_killed_after_some_answers_and_run_again(tmp_path, n_hits, signal_name):
    with LoopbackWeb(mixed, delay=(0.03, 0.02)) as web:
        urls = [web.url + path for path in mixed]
        download_images(tmp_path/'whole', urls, 'a', allow_private=LOCAL, tries=1)
        web.hits.clear()
        run = subprocess.Popen([sys.executable, '-c', plain, str(tmp_path/'cut'), *urls], env={**os.environ, 'TQDM_DISABLE': '1'}, stderr=subprocess.DEVNULL)
        while web.hits.total() < n_hits and run.poll() is None: time.sleep(0.005)
        run.send_signal(getattr(signal, signal_name))
        assert run.wait(10) != 0
        if signal_name == 'SIGINT': assert len(read_manifest(tmp_path/'cut')) == len(urls)
        download_images(tmp_path/'cut', urls, 'a', allow_private=LOCAL, tries=1)
    assert snapshot(tmp_path/'cut') == snapshot(tmp_path/'whole')


def test_a_left_over_of_another_label_is_kept(tmp_path):
    place = download._Workplace(tmp_path)
    place.note(download.ImageRow(label='b', url='http://b.test/1', status='failed', reason='HTTP 404 Not Found'))
    place.close()  # as the end of the process does
    download_images(tmp_path, ['no address'], 'a')
    assert [(r.label, r.status) for r in read_manifest(tmp_path)] == [('b', 'failed'), ('a', 'failed')]


# --- enough, deadline, copies

def test_a_satisfied_label_is_not_fetched_again(tmp_path):
    pages = {f'/{n}': image_bytes(n) for n in range(12)} | {'/gone': Reply(404)}
    with LoopbackWeb(pages, delay=(0.01, 0.01)) as web:
        urls = [f'{web.url}/gone', *(web.url + path for path in pages)]
        first = download_images(tmp_path, urls, 'a', enough=4, n_connections=2, allow_private=LOCAL)
        before, n = snapshot(tmp_path), web.hits.total()
        assert 4 <= sum(r.status == 'ok' for r in first) <= 6 and first[0].reason == 'HTTP 404 Not Found'
        assert {r.reason for r in first if r.status == 'failed'} == {'HTTP 404 Not Found', 'not fetched: enough images had come'}
        download_images(tmp_path, urls, 'a', enough=4, allow_private=LOCAL)
        assert web.hits.total() == n and snapshot(tmp_path) == before
        assert {r.status for r in download_images(tmp_path, urls[1:13], 'a', enough=12, allow_private=LOCAL)} == {'ok'}


def test_a_deadline_ends_the_whole_run(tmp_path):
    pages = {f'/{n}': Reply(body=image_bytes(n), wait=0 if n < 3 else 30) for n in range(40)}
    start = time.monotonic()
    with LoopbackWeb(pages) as web: rows = download_images(tmp_path, [web.url + p for p in pages], 'a', deadline=1, allow_private=LOCAL)
    assert time.monotonic() - start < 5
    assert [r.status for r in rows] == ['ok']*3 + ['failed']*37 and {r.reason for r in rows[3:]} == {'not fetched: the time for the whole run was over'}
    assert list((tmp_path/'a').glob('*.part')) == [] and not (tmp_path/'.bearcls-download').exists()


def test_new_bytes_that_are_known_under_another_name_get_no_second_file(tmp_path):
    with LoopbackWeb({'/a': image_bytes(1), '/b': image_bytes(1), '/c': image_bytes(2)}) as web:
        [first] = download_images(tmp_path, [f'{web.url}/a'], 'a', allow_private=LOCAL)
        rows = download_images(tmp_path, [f'{web.url}/b', f'{web.url}/c'], 'a', allow_private=LOCAL)
        [other] = download_images(tmp_path, [f'{web.url}/a'], 'b', allow_private=LOCAL)
    assert [r.status for r in rows] == ['duplicate', 'ok'] and rows[0].reason == f'the same bytes as {first.file}'
    assert other.status == 'ok' and other.file.startswith('b/')  # across labels it is for verify to judge
    assert len(image_files(tmp_path)) == 3


def test_rows_carry_the_hash_that_verify_would_compute(tmp_path):
    data = image_bytes(7, (900, 700))
    with LoopbackWeb({'/a': data}) as web: [row] = download_images(tmp_path, [f'{web.url}/a'], 'a', allow_private=LOCAL)
    assert row.phash == f'{fingerprint(load_image(data, min_side=256)).whole:016x}' and read_manifest(tmp_path) == [row]


def test_bytes_in_quarantine_do_not_come_back_under_another_address(tmp_path):
    with LoopbackWeb({'/a': image_bytes(1), '/b': image_bytes(1)}) as web:
        [row] = download_images(tmp_path, [f'{web.url}/a'], 'a', allow_private=LOCAL)
        check_images(tmp_path).adjust(min_side=1000).quarantine(['too_small'], files=[row.file])
        [copy] = download_images(tmp_path, [f'{web.url}/b'], 'a', allow_private=LOCAL)
        n = web.hits.total()
        assert download_images(tmp_path, [f'{web.url}/b'], 'a', allow_private=LOCAL) == [copy] and web.hits.total() == n
    assert copy.status == 'duplicate' and 'quarantine' in copy.reason and image_files(tmp_path) == []


# --- what servers do

def fetched(urls, limits, **options):
    "Outcome by address, and seconds"
    outcomes, start = {}, time.monotonic()
    async def note(url, got): outcomes[url] = got
    run_aside(lambda: fetch_many(urls, note, limits, **options))
    return outcomes, time.monotonic() - start


def test_packed_bombs_do_not_unpack(tmp_path):
    "A gigabyte of zeros in a megabyte, once by gzip and once by gzip within chunks; in a process of its own, to see its memory"
    script = """
import resource, sys
from bearcls.gather.fetch import FetchError, FetchLimits, fetch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: fetch(sys.argv[1], limits=FetchLimits(max_bytes=1_000_000, allow_private=True))
except FetchError as e: print(e.kind, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    pytest.importorskip('resource')
    packer = zlib.compressobj(9, wbits=31)
    bomb = b''.join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    with LoopbackWeb({'/bomb': Reply(body=bomb, headers={'Content-Encoding': 'gzip'})}) as web:
        kind, kilobytes = subprocess.run([sys.executable, '-c', script, f'{web.url}/bomb'], capture_output=True, text=True).stdout.split()
    assert kind == 'too_big' and int(kilobytes) < 50_000 * (1024 if sys.platform == 'darwin' else 1)


def raw(*parts, pause=0.0):
    "A server that writes these bytes, whatever it is asked"
    async def serve():
        async def answer(reader, writer):
            try:
                await reader.readuntil(b'\r\n\r\n')
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(pause)
                writer.close()
            except (OSError, asyncio.IncompleteReadError): pass
        return await asyncio.start_server(answer, '127.0.0.1', 0)
    return serve

@pytest.mark.parametrize('serve, kind', [
    (raw(b'HTTP/1.1 200 OK\r\n', *[b'X-Flood: ' + b'y'*1000 + b'\r\n']*100_000), 'broken'),
    (raw(b'HTTP/1.1 200 OK\r\nX-Long: ', *[b'y'*65536]*1000), 'broken'),
    (raw(*[b'HTTP/1.1 103 Early Hints\r\n\r\n']*100, pause=0.1), 'silent'),
    (raw(b'HTTP/1.1 200 OK\r\n', *[b'X: y\r\n']*60, pause=0.1), 'silent'),
    (raw(b'220 welcome to this mail server\r\n'), 'broken'),
    (raw(b'HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n', b'x'), 'broken'),
    (raw(b'HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n', b'x'), None),
    (raw(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', b'zzz\r\n'), 'broken'),
    (raw(b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\n', b'not gzip!'), 'broken'),
    (raw(b'HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n'), 'refused'),
    (raw(b'HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n'), None),
    (raw(b'HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n'), 'status'),
], ids='flood longline early-hints header-drip mail negative huge chunks nozip badlocation bytes-location nowhere'.split())
def test_bad_http_is_one_error(serve, kind):
    got = {}
    async def main():
        server = await serve()
        url = f'http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a?key=secret'
        async def note(url, answer): got['answer'] = answer
        async with server: await fetch_many([url], note, FetchLimits(timeout=2, idle=1.5, tries=1, max_bytes=1000, allow_private=True))
    start = time.monotonic()
    asyncio.run(main())
    error = got['answer']
    assert isinstance(error, FetchError) and time.monotonic() - start < 6
    assert kind in (error.kind, None) and 'secret' not in str(error) and str(error)


def test_an_error_page_or_a_redirect_needs_no_end():
    pages = {'/cut': Reply(404, bytes(1000), send=10), '/hung': Reply(302, bytes(1000), {'Location': '/ok'}, stall=30), '/ok': b'ok',
             '/long': Reply(500, bytes(1_000_000)), '/endless': Reply(403, bytes(1000), {'Content-Length': '999999999'}, stall=30)}
    with LoopbackWeb(pages) as web: outcomes, seconds = fetched([web.url + p for p in pages], FetchLimits(allow_private=True, tries=1))
    assert [getattr(outcomes[web.url + p], 'status', None) for p in pages] == [404, 200, 200, 500, 403] and seconds < 8


def test_absurd_retry_after_is_not_waited_for():
    pages = {f'/{n}': Reply(429, headers={'Retry-After': '99999999'}) for n in range(20)} | {'/soon': Reply(503, headers={'Retry-After': 'Fri, 31 Dec 9999 23:59:59 GMT'}), '/junk': Reply(429, headers={'Retry-After': '9'*5000})}
    with LoopbackWeb(pages) as web:
        outcomes, seconds = fetched([web.url + p for p in pages], FetchLimits(allow_private=True, tries=2), per_host=2)
        assert seconds < 10 and web.hits.total() < 10  # the others on this host are not even asked
    assert {e.kind for e in outcomes.values()} == {'status'} and 'left alone for more than 30 seconds' in outcomes[f'{web.url}/0'].why


@several_hosts
def test_retry_after_pauses_the_whole_host_and_no_other():
    times = {'127.0.0.1': [], '127.0.0.2': []}
    def page(request):
        host = request.headers['Host'].partition(':')[0]
        times[host].append(time.monotonic())
        return Reply(429, headers={'Retry-After': '1'}) if host == '127.0.0.1' and len(times[host]) == 1 else b'x'
    with LoopbackWeb({f'/{n}': page for n in range(6)}, hosts=list(times)) as web:
        urls = [f'http://{host}:{web.port}/{n}' for n in range(6) for host in times]
        outcomes, seconds = fetched(urls, FetchLimits(allow_private=True), per_host=1)
    assert all(isinstance(got, Fetched) for got in outcomes.values())
    assert times['127.0.0.1'][1] - times['127.0.0.1'][0] >= 1 and times['127.0.0.2'][-1] < times['127.0.0.1'][1]


@several_hosts
def test_a_slow_host_does_not_hold_up_the_others():
    order = []
    async def note(url, got): order.append(url)
    with LoopbackWeb({f'/{n}': (lambda n: lambda request: Reply(body=b'x', wait=1 if request.headers['Host'].startswith('127.0.0.1:') else 0))(n) for n in range(30)}, hosts=['127.0.0.1', '127.0.0.2']) as web:
        urls = [f'http://{host}:{web.port}/{n}' for host in ('127.0.0.1', '127.0.0.2') for n in range(20)]
        run_aside(lambda: fetch_many(urls, note, FetchLimits(allow_private=True), n_connections=10))
    assert all('127.0.0.2' in url for url in order[:20])


@several_hosts
def test_no_more_than_the_limits_at_once():
    running, most = {}, {}
    def page(request):
        host = request.headers['Host']
        running[host] = running.get(host, 0) + 1
        most[host], most['all'] = max(most.get(host, 0), running[host]), max(most.get('all', 0), sum(running.values()))
        return Reply(body=b'x', wait=0.05)
    with LoopbackWeb({'/a': page}, hosts=['127.0.0.1', '127.0.0.2', '127.0.0.3']) as web:
        async def note(url, got): running[url.split('/')[2]] -= 1
        urls = [f'http://127.0.0.{n % 3 + 1}:{web.port}/a?{n}' for n in range(60)]
        run_aside(lambda: fetch_many(urls, note, FetchLimits(allow_private=True), n_connections=7, per_host=3))
    assert most.pop('all') <= 7 and all(n <= 3 for n in most.values())


def test_an_address_that_moved_is_never_lost(monkeypatch):
    "Its second visit may begin before the task of the first is quite gone"
    told, first = [], 'http://a.test/'
    async def attempt(run, job):
        if not job.hops: return 'http://b.test/'
        await asyncio.sleep(.01)
        return fetching.Fetched(job.url, 200, {}, b'there')
    async def handle(item, got): told.append((item, got))
    async def main():
        run = fetching._Run({}, handle, fetching.FetchLimits(), fetching._Queue(8))
        fetching._start(run, fetching._Job(first, first, 'a.test'))
        await asyncio.sleep(0)  # the first visit is over, and nobody has heard yet
        fetching._start(run, run.queue.take())
        await fetching._finish(run, await fetching._go(run, 8, float('inf'), str))
    monkeypatch.setattr(fetching, '_attempt', attempt)
    asyncio.run(main())
    assert [(item, got.url) for item, got in told] == [(first, 'http://b.test/')]


def test_a_dead_host_is_given_up_after_three_failures():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
        outcomes, _ = fetched([f'http://127.0.0.1:{port}/{n}' for n in range(50)], FetchLimits(allow_private=True), per_host=1)
    assert {(e.kind, e.why) for e in outcomes.values()} == {('unreachable', next(iter(outcomes.values())).why)}


def test_stalls_at_the_end_of_a_run_do_not_hold_it_up():
    pages = {f'/{n}': Reply(body=b'x'*1000, stall=30 if n in (5, 17) else 0) for n in range(60)}
    with LoopbackWeb(pages, delay=(0.05, 0.04)) as web: outcomes, seconds = fetched([web.url + p for p in pages], FetchLimits(allow_private=True))
    assert seconds < 8 and {outcomes[web.url + p].kind for p in ('/5', '/17')} == {'silent'}
    assert sum(isinstance(got, Fetched) for got in outcomes.values()) == 58


def test_a_server_slower_than_the_others_is_waited_for():
    "3 seconds of silence are within what this run has seen: its answers take 0.6 seconds"
    pages = {f'/{n}': Reply(body=b'x', wait=3 if n == 0 else 0.6) for n in range(40)}
    with LoopbackWeb(pages) as web: outcomes, _ = fetched([web.url + p for p in pages], FetchLimits(allow_private=True), per_host=64)
    assert all(isinstance(got, Fetched) for got in outcomes.values())


@several_hosts
def test_keys_stay_with_their_host():
    seen = []
    def page(request):
        seen.append({k.lower(): v for k, v in request.headers.items()})
        return b'ok'
    with LoopbackWeb({'/b': page}, hosts=['127.0.0.1', '127.0.0.2']) as web:
        web.pages.update({'/same': moved('/b'), '/other': moved(f'http://127.0.0.2:{web.port}/b'), '/leak': moved(f'http://127.0.0.2:{web.port}/b?k=to%70secret')})
        limits = FetchLimits(allow_private=True)
        for path in ('/same', '/other'): fetch(web.url + path, {'q': 1, 'key': 'topsecret'}, {'X-Key': 'sesame', 'X-Plain': '1'}, limits, secret=['x-key', 'key'])
        with pytest.raises(FetchError, match='carry a key') as info: fetch(f'{web.url}/leak', {'key': 'topsecret'}, limits=limits, secret=['key'])
    assert [s.get('x-key') for s in seen] == ['sesame', None] and [s.get('x-plain') for s in seen] == ['1', '1']
    assert all('referer' not in s and 'cookie' not in s and s['user-agent'].startswith('bearcls/') for s in seen)
    assert 'topsecret' not in str(info.value)


def test_robots_that_cannot_be_read_refuse(tmp_path):
    for answer, n_hits, status in [(Reply(404), 1, 'ok'), (Reply(500), 0, 'failed'), (Reply(body=b'', stall=0, send=0, headers={'Content-Length': '9'}), 0, 'failed'), (moved('/robots.txt'), 0, 'failed'),
                                   (b'User-agent: bearcls\nDisallow: /', 0, 'failed'), (b'\xff\xfe\0garbage', 1, 'ok')]:
        with LoopbackWeb({'/robots.txt': answer, '/a': image_bytes()}) as web:
            [row] = download_images(tmp_path/str(len(list(tmp_path.iterdir()))), [f'{web.url}/a'], 'a', respect_robots=True, allow_private=LOCAL, tries=1)
            assert (web.hits['/a'], row.status) == (n_hits, status), answer
            assert status == 'ok' or 'robots.txt' in row.reason


def test_a_proxy_is_used_and_numbers_are_refused_all_the_same(tmp_path, monkeypatch):
    with serving({'http://images.test/a': image_bytes()}) as (site, hits):
        monkeypatch.setenv('http_proxy', site)
        monkeypatch.setenv('no_proxy', '')
        rows = download_images(tmp_path, ['http://images.test/a', 'http://169.254.169.254/', 'http://10.0.0.1/'], 'a')
    assert [r.status for r in rows] == ['ok', 'failed', 'failed'] and hits == ['http://images.test/a']


def test_quarantined_images_do_not_come_back(tmp_path):
    with serving({'/a': image_bytes(1), '/b': image_bytes(2)}) as (site, hits):
        urls = [f'{site}/a', f'{site}/b']
        rows = download_images(tmp_path/'d', urls, 'a', allow_private=LOCAL)
        report = check_images(tmp_path/'d').adjust(min_side=1000)
        report.quarantine(['too_small'], files=[rows[0].file])
        hits.clear()
        assert [r.status for r in download_images(tmp_path/'d', urls, 'a', allow_private=LOCAL)] == ['quarantined', 'ok']
        assert hits == []


def test_works_inside_a_running_loop(tmp_path):
    import asyncio
    async def cell(): return download_images(tmp_path, [f'{site}/a'], 'a', allow_private=LOCAL)
    with serving({'/a': image_bytes()}) as (site, _): [row] = asyncio.run(cell())
    assert row.status == 'ok'


def test_only_the_local_provider_may_name_files(tmp_path, bears):
    address = (bears/'black'/'0.jpg').as_uri()
    rows = download_images(tmp_path/'d', [SearchResult(address, provider='duckduckgo')], 'a')
    assert rows[0].status == 'failed'
    assert download_images(tmp_path/'d', [SearchResult(address, provider='local')], 'a')[0].status == 'ok'


def test_gather_tells_of_a_failed_search_and_goes_on(tmp_path, bears):
    def provider(term, max_images, **options):
        if term == 'unlucky': raise SearchError('mine', 'closed', 'Come back tomorrow')
        return search_images(term, max_images, 'local', source=bears)
    rows = gather({'grizzly': ['unlucky', 'grizzly'], 'black': 'black'}, tmp_path/'d', provider=provider)
    assert [(r.term, r.status) for r in rows][0] == ('unlucky', 'failed')
    assert {(r.label, r.status) for r in rows} == {('grizzly', 'failed'), ('grizzly', 'ok'), ('black', 'ok'), ('black', 'failed')}
    assert len(image_files(tmp_path/'d')) == 6


def test_enough_counts_the_images_of_all_terms_of_a_label(tmp_path, bears):
    asked = []
    def provider(term, max_images, **options):
        asked.append(term)
        return search_images(term, max_images, 'local', source=bears)
    def again(): return gather({'any': ['grizzly', 'black']}, tmp_path/'d', provider=provider, enough=4, search={'cache': False})
    rows = again()
    assert asked == ['grizzly', 'black'] and 4 <= len(image_files(tmp_path/'d')) < 6
    before = snapshot(tmp_path/'d')
    assert again() == rows and snapshot(tmp_path/'d') == before


def test_gather_refuses_a_bad_label_before_it_asks_anybody(tmp_path):
    def provider(term, max_images, **options): raise AssertionError('asked')
    with pytest.raises(DataError, match='plain folder name'): gather({'good': 'a', '../bad': 'b'}, tmp_path/'d', provider=provider)
    assert not (tmp_path/'d').exists()


def test_two_runs_do_not_mix(tmp_path):
    "The second run into a folder is refused while the first lasts"
    pages = {f'/{n}': image_bytes(n) for n in range(6)}
    with LoopbackWeb(pages, delay=(0.3, 0)) as web:
        urls, told = [web.url + p for p in pages], {}
        def run(label):
            try: told[label] = [r.status for r in download_images(tmp_path, urls, label, allow_private=True)]
            except DataError as e: told[label] = str(e)
        threads = [threading.Thread(target=run, args=(label,)) for label in 'ab']
        for t in threads: t.start()
        for t in threads: t.join()
        assert sorted(map(str, told.values())) == sorted([f'Another run is downloading into {tmp_path}; wait until it has ended, or give another folder', str(['ok']*6)])
        for label in 'ab': assert {r.status for r in download_images(tmp_path, urls, label, allow_private=True)} == {'ok'}
    assert sorted(f.name for f in tmp_path.iterdir()) == ['a', 'b', 'manifest.csv']


def test_a_image_that_was_edited_is_kept(tmp_path):
    with LoopbackWeb({'/a': image_bytes(1)}) as web:
        [row] = download_images(tmp_path, [f'{web.url}/a'], 'a', allow_private=True)
        (tmp_path/row.file).write_bytes(mine := image_bytes(2, size=(40, 40)))
        download_images(tmp_path, [f'{web.url}/a'], 'a', allow_private=True)
        assert (tmp_path/row.file).read_bytes() == mine and web.hits['/a'] == 1


def test_columns_of_the_user_survive(tmp_path):
    with LoopbackWeb({'/a': image_bytes(1), '/b': image_bytes(2)}) as web:
        download_images(tmp_path, [f'{web.url}/a'], 'a', allow_private=True)
        table = tmp_path/'manifest.csv'
        head, line = table.read_text(encoding='utf-8').splitlines()
        table.write_text(f'{head},note\n{line},my best\n', encoding='utf-8-sig')
        download_images(tmp_path, [f'{web.url}/b'], 'a', allow_private=True)
    assert [r.more for r in read_manifest(tmp_path)] == [{'note': 'my best'}, {'note': ''}]


def test_a_manifest_of_another_kind_is_not_overwritten(tmp_path):
    (tmp_path/'manifest.csv').write_text('file;label\nx;y\n', encoding='utf-8')
    with pytest.raises(DataError, match='no column `file`'): download_images(tmp_path, ['http://127.0.0.1:9/'], 'a', allow_private=True)
    assert (tmp_path/'manifest.csv').read_text(encoding='utf-8') == 'file;label\nx;y\n'


def test_an_endless_address_leaves_a_readable_manifest(tmp_path):
    [row] = download_images(tmp_path, ['data:image/png;base64,' + 'A'*200_000], 'a')
    assert row.status == 'failed' and read_manifest(tmp_path) == [row]


def test_a_damaged_avif_is_a_row(tmp_path):
    damaged = image_bytes(1, fmt='AVIF').replace(b'iloc', b'free')
    with LoopbackWeb({'/a': damaged, '/b': image_bytes(2)}) as web:
        rows = download_images(tmp_path, [f'{web.url}/a', f'{web.url}/b'], 'a', allow_private=True)
    assert [r.status for r in rows] == ['failed', 'ok'] and rows[0].reason


def test_an_address_is_sent_as_it_was_signed(tmp_path):
    signed = '/s?url=https%3A%2F%2Fa.b%2Fc.jpg&name=it%27s%2C'
    with LoopbackWeb({'/s': image_bytes(1)}) as web:
        download_images(tmp_path, [web.url + signed], 'a', allow_private=True)
        assert list(web.hits) == [signed]


@pytest.mark.parametrize('name', ['n_connections', 'per_host', 'enough'])
def test_impossible_numbers_are_refused(tmp_path, name):
    with pytest.raises(DataError, match=f'`{name}` must be at least 1'): download_images(tmp_path, [], 'a', **{name: 0})
