"Hostile addresses, answers and accidents around download: what would make bad reading in a notebook"
import errno, time
import pytest
from hostile import LOCAL, bomb, dripping, endless, picture, redirect, serving, snapshot
from bearcls import download
from bearcls.core import DataError, image_files, sha256
from bearcls.download import download_images, gather
from bearcls.search import SearchError, SearchResult, search_images
from bearcls.verify import check_images

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
