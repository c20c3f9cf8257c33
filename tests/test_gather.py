"Hostile files, addresses and accidents around search, download and verify: what would make bad reading in a notebook"
import errno, io, json, os, shutil, struct, threading, time, zlib
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
from PIL import Image, ImageDraw
from bearcls import download, quarantine, verify
from bearcls.core import DataError, ImageRow, describe_file, image_files, read_manifest, sha256, write_manifest
from bearcls.download import download_images, gather
from bearcls.quarantine import quarantine_folder, restore
from bearcls.search import SearchError, SearchResult, search_images
from bearcls.verify import check_images, verify_images

LOCAL = ['127.0.0.1']


def picture(n=0, size=(96, 80), fmt='JPEG'):
    image = Image.new('RGB', size, (30 + 40*n % 200, 120, 90))
    draw = ImageDraw.Draw(image)
    for i in range(6): draw.rectangle([7*i + n, 9*i, 7*i + 20 + n, 9*i + 11], fill=(255 - 30*i, 40*i % 255, (60 + 50*n) % 255))
    out = io.BytesIO()
    image.save(out, fmt)
    return out.getvalue()


def bomb(width=60000, height=60000):
    chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*64)) + chunk(b'IEND', b'')


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


@pytest.fixture
def bears(tmp_path):
    folder = tmp_path/'bears'
    for k, label in enumerate(('black', 'grizzly')):
        (folder/label).mkdir(parents=True)
        for n in range(3): (folder/label/f'{n}.jpg').write_bytes(picture(10*k + n))
    (folder/'black'/'broken.jpg').write_bytes(picture(1)[:-200])
    (folder/'grizzly'/'page.jpg').write_bytes(b'<html>')
    return folder


# download

def test_hostile_answers_become_rows(tmp_path):
    pages = {'/good': picture(), '/bomb.png': bomb(), '/endless': endless, '/drip': dripping, '/text.jpg': b'hello', '/eps.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n',
             '/empty.jpg': b'', '/loop': redirect('/loop'), '/file': redirect('file:///etc/hostname'), '/long': redirect('/x' * 40000)}
    with serving(pages) as (site, hits):
        start = time.monotonic()
        rows = download_images(tmp_path/'d', [site + p for p in pages], 'a', timeout=2, max_bytes=500_000, allow_private=LOCAL)
        assert time.monotonic() - start < 30
    got = {r.url.removeprefix(site): (r.status, r.reason) for r in rows}
    assert got.pop('/good') == ('ok', '')
    assert {s for s, _ in got.values()} == {'failed'} and all(reason for _, reason in got.values())
    for path, words in {'/bomb.png': 'pixels', '/endless': 'more than 500,000 bytes', '/drip': 'within 2 seconds', '/text.jpg': 'no picture', '/eps.jpg': 'no picture',
                        '/empty.jpg': 'empty', '/loop': 'redirects', '/file': 'only http and https'}.items(): assert words in got[path][1], (path, got[path])
    assert [f.name for f in (tmp_path/'d'/'a').iterdir()] == [sha256(picture())[:16] + '.jpg']


@pytest.mark.parametrize('url', ['http://127.0.0.1:9/', 'http://localhost/', 'http://[::1]/', 'http://2130706433/', 'http://0x7f000001/', 'http://169.254.169.254/', 'http://10.0.0.1/', 'http://0/',
                                 'http://[::ffff:127.0.0.1]/', 'ftp://example.org/a.jpg', 'file:///etc/hostname', 'javascript:alert(1)', '', '//', 'http://', 'http://[', 'http://\udcff/', 'not an address',
                                 'http://127.0.0.1/' + 'a'*10_000])
def test_unwanted_addresses_are_refused_unvisited(tmp_path, url):
    [row] = download_images(tmp_path/'d', [url], 'a', timeout=5)
    assert row.status == 'failed' and row.reason
    assert list((tmp_path/'d'/'a').iterdir()) == []


def test_long_address_on_an_allowed_host(tmp_path):
    with serving({'/' + 'a'*10_000: picture()}) as (site, hits): [row] = download_images(tmp_path, [f'{site}/{"a"*10_000}'], 'a', allow_private=LOCAL)
    assert row.status == 'ok' or row.reason


def test_redirect_into_a_private_network_is_refused(tmp_path):
    with serving({'/secret': picture()}) as (inner, inner_hits):
        with serving({'/a': redirect(inner.replace('127.0.0.1', 'localhost') + '/secret')}) as (site, _):
            [row] = download_images(tmp_path, [f'{site}/a'], 'a', allow_private=LOCAL)
        assert row.status == 'failed' and 'private network' in row.reason and inner_hits == []


def test_connected_address_is_checked_when_the_name_lied(tmp_path, monkeypatch):
    async def says_public(url, allow_private): return None
    monkeypatch.setattr(download, '_check_address', says_public)
    with serving({'/a': picture()}) as (site, _): [row] = download_images(tmp_path, [f'{site}/a'], 'a')
    assert row.status == 'failed' and 'led to the private address 127.0.0.1' in row.reason


@pytest.mark.parametrize('label', ['..', '.', '', 'a/b', 'a\\b', '/abs', '.hidden', 'C:x', ' a', 'a\n', 'nul\0'])
def test_labels_cannot_leave_the_folder(tmp_path, label):
    with pytest.raises(DataError): download_images(tmp_path/'d', [], label)
    assert not (tmp_path/'d').exists()


def test_names_from_the_web_never_reach_the_disk(tmp_path):
    with serving({'/../../evil.jpg': picture(), '/%2e%2e%2fevil.jpg': picture(1)}) as (site, _):
        rows = download_images(tmp_path/'d'/'e', [f'{site}/../../evil.jpg', f'{site}/%2e%2e%2fevil.jpg'], 'a', allow_private=LOCAL)
    assert sorted(snapshot(tmp_path)) == sorted(['d/e/manifest.csv', *{f'd/e/{r.file}' for r in rows if r.file}])


def test_no_space_is_one_clear_error_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(file, data): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(download, '_save', full)
    with serving({'/a': picture()}) as (site, _):
        with pytest.raises(DataError, match='No space left'): download_images(tmp_path, [f'{site}/a'], 'a', allow_private=LOCAL)
    assert list((tmp_path/'a').iterdir()) == []


def test_a_stopped_run_is_taken_up_again(tmp_path, monkeypatch):
    pages = {f'/{n}': picture(n) for n in range(12)}
    real, saved = download._save, []
    def stops_after_five(file, data):
        if len(saved) == 5: raise KeyboardInterrupt
        real(file, data)
        saved.append(file)
    with serving(pages) as (site, hits):
        urls = [site + p for p in pages]
        whole = download_images(tmp_path/'whole', urls, 'a', allow_private=LOCAL)
        monkeypatch.setattr(download, '_save', stops_after_five)
        with pytest.raises(KeyboardInterrupt): download_images(tmp_path/'cut', urls, 'a', allow_private=LOCAL, n_connections=1)
        monkeypatch.setattr(download, '_save', real)
        hits.clear()
        again = download_images(tmp_path/'cut', urls, 'a', allow_private=LOCAL)
        assert len(hits) < len(urls)
    assert again == whole and snapshot(tmp_path/'cut') == snapshot(tmp_path/'whole')


def test_quarantined_pictures_do_not_come_back(tmp_path):
    with serving({'/a': picture(1), '/b': picture(2)}) as (site, hits):
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
    with serving({'/a': picture()}) as (site, _): [row] = asyncio.run(cell())
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


# verify

def test_hostile_files_become_findings(bears):
    (bears/'black'/'bomb.png').write_bytes(bomb())
    (bears/'black'/'nearly.png').write_bytes(bomb(10_500, 10_000))
    (bears/'black'/'empty.gif').write_bytes(b'')
    (bears/'black'/'tricky.jpg').write_bytes(b'\xff\xd8\xff' + os.urandom(3000))
    (bears/'black'/'odd\nname <b>.jpg').write_bytes(b'<html>') if os.name != 'nt' else None
    report = check_images(bears)
    kinds = {f.file: f.issue for f in report.rows if f.issue in verify.broken_issues}
    assert kinds['black/bomb.png'] == kinds['black/nearly.png'] == 'bomb'
    assert kinds['black/broken.jpg'] == 'truncated' and kinds['grizzly/page.jpg'] == 'not_an_image' and kinds['black/empty.gif'] == 'empty'
    assert kinds['black/tricky.jpg'] in ('unreadable', 'not_an_image', 'truncated')
    assert '<b>.jpg' not in report._repr_html_()
    assert check_images(bears, n_workers=1).rows == check_images(bears, n_workers=5).rows
    assert [f.relative_to(bears).as_posix() for f in verify_images(image_files(bears))] == [f for f in map(lambda f: f.relative_to(bears).as_posix(), image_files(bears)) if f in kinds]


def test_a_file_that_goes_away_is_a_finding(bears):
    (bears/'black'/'gone.jpg').write_bytes(picture())
    files = image_files(bears)
    (bears/'black'/'gone.jpg').unlink()
    [m] = [verify.measure_file(f, bears) for f in files if f.name == 'gone.jpg']
    assert m.issue == 'missing'


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission_is_a_finding(bears):
    (bears/'black'/'0.jpg').chmod(0)
    assert 'black/0.jpg' in check_images(bears).files('unreadable')


def test_quarantine_and_restore_byte_for_byte(bears):
    write_manifest(bears, [describe_file(f, bears, url=f'https://example.org/{f.name}') for f in image_files(bears)])
    before = snapshot(bears.parent)
    report = check_images(bears)
    moves = report.quarantine()
    assert [(m.file, m.status) for m in moves] == [('grizzly/page.jpg', 'moved'), ('black/broken.jpg', 'moved')]
    assert not (bears/'black'/'broken.jpg').exists() and (quarantine_folder(bears)/'black'/'broken.jpg').exists()
    assert {r.file for r in read_manifest(bears) if r.status == 'quarantined'} == {m.file for m in moves}
    assert {m.status for m in restore(bears)} == {'restored'}
    after = snapshot(bears.parent)
    del after['.quarantine/bears/journal.jsonl']
    assert after == before


def test_interrupted_before_and_after_the_move(bears, monkeypatch):
    before = snapshot(bears)
    report, real = check_images(bears), quarantine._move
    def power_cut(source, target): raise KeyboardInterrupt
    monkeypatch.setattr(quarantine, '_move', power_cut)
    with pytest.raises(KeyboardInterrupt): report.quarantine()
    assert snapshot(bears) == before
    def power_cut_after(source, target):
        real(source, target)
        raise KeyboardInterrupt
    monkeypatch.setattr(quarantine, '_move', power_cut_after)
    with pytest.raises(KeyboardInterrupt): report.quarantine()
    assert len(snapshot(bears)) == len(before) - 1
    with pytest.raises(KeyboardInterrupt): restore(bears)
    monkeypatch.setattr(quarantine, '_move', real)
    restore(bears)
    assert snapshot(bears) == before and restore(bears) == []
    report.quarantine()
    journal = quarantine_folder(bears)/'journal.jsonl'
    journal.write_bytes(journal.read_bytes() + b'{"id": 99, "file": "bl')
    restore(bears)
    assert snapshot(bears) == before
    assert {m.status for m in report.quarantine()} == {'moved'}
    restore(bears)
    assert snapshot(bears) == before


def test_the_same_file_may_leave_and_return_many_times(bears):
    before, report = snapshot(bears), check_images(bears)
    for _ in range(3):
        assert len(report.quarantine()) == 2
        assert len(restore(bears)) == 2
    assert snapshot(bears) == before


def test_collisions_on_both_sides_keep_every_file(bears):
    report = check_images(bears)
    first = (bears/'black'/'broken.jpg').read_bytes()
    report.quarantine()
    second = picture(2)[:-300]
    (bears/'black'/'broken.jpg').write_bytes(second)
    assert [m.to for m in check_images(bears).quarantine()] == ['black/broken-1.jpg']
    third = picture(5)
    (bears/'black'/'broken.jpg').write_bytes(third)
    restore(bears)
    assert {f.read_bytes() for f in (bears/'black').glob('broken*')} == {first, second, third}


def test_a_journal_cannot_lead_out_of_the_folder(bears, tmp_path):
    report = check_images(bears)
    report.quarantine()
    journal = quarantine_folder(bears)/'journal.jsonl'
    lines = journal.read_text(encoding='utf-8').splitlines()
    for field, name in [('file', '../../evil.jpg'), ('file', '/evil.jpg'), ('file', 'black\\..\\..\\evil.jpg'), ('to', '../../../outside.jpg')]:
        (tmp_path.parent/'outside.jpg').write_bytes(b'x')
        entry = {**json.loads(lines[0]), field: name}
        journal.write_text('\n'.join([json.dumps(entry), *lines[1:]]) + '\n', encoding='utf-8')
        held = snapshot(tmp_path)
        if field == 'file' or (quarantine_folder(bears)/name).exists():
            with pytest.raises(DataError, match='leads out of'): restore(bears)
        assert snapshot(tmp_path) == held
    with pytest.raises(DataError): report.quarantine(files=['../../outside.jpg'])


def test_across_disks_a_move_copies_first(bears, monkeypatch):
    def other_disk(a, b): raise OSError(errno.EXDEV, 'Invalid cross-device link')
    before = snapshot(bears)
    monkeypatch.setattr(quarantine.os, 'rename', other_disk)
    assert {m.status for m in check_images(bears).quarantine()} == {'moved'}
    assert {m.status for m in restore(bears)} == {'restored'}
    assert snapshot(bears) == before


def test_a_move_that_fails_is_a_row(bears, monkeypatch):
    def refuse(a, b): raise PermissionError(errno.EACCES, 'Permission denied')
    before = snapshot(bears)
    monkeypatch.setattr(quarantine.os, 'rename', refuse)
    moves = check_images(bears).quarantine()
    assert {m.status for m in moves} == {'skipped'} and all('Permission denied' in m.reason for m in moves)
    assert snapshot(bears) == before


def test_a_hundred_identical_and_blank_pictures_stay_quick(tmp_path):
    (tmp_path/'b'/'x').mkdir(parents=True)
    for n in range(100): Image.new('RGB', (64, 64), (n, n, n)).save(tmp_path/'b'/'x'/f'{n:03}.png')
    report = check_images(tmp_path/'b')
    assert report.counts['near_constant'] == 100 and 'near_copy' not in report.counts
