"Searching: servers that play the interfaces of Bing and Google, ddgs's own client against a server, and keys that must not leak"
import asyncio, base64, html, json, logging, subprocess, sys, threading, time, traceback
from contextlib import suppress
from urllib.parse import quote
import pytest
from hostile import bomb, image_bytes, several_hosts
from bearcls.gather.fetch import FetchLimits
from bearcls.sample.loopback import Reply, LoopbackWeb, moved
from bearcls.gather.providers import licenses, provider, provider_metadata, providers, search_bing, search_bing_api, search_duckduckgo, search_google
from bearcls.gather.results import SearchError, SearchResult, SearchResults, read_results, results_html, write_results
from bearcls.core import cache_folder
from bearcls.gather.search import search_images

KEY, CX = 'AIza+S3cret/k3y==', '0a1b2c:bears'
quick = FetchLimits(allow_private=True, tries=1, timeout=5)
patient = FetchLimits(allow_private=True, tries=3, timeout=5, max_wait=60)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('BEARCLS_CACHE', str(tmp_path/'cache'))
    for name in ('BING_SEARCH_KEY', 'BING_SEARCH_ENDPOINT', 'GOOGLE_API_KEY', 'GOOGLE_CSE_ID'): monkeypatch.delenv(name, raising=False)


def bing_answer(request, n_all=20, size=4):
    "The Image Search API, version 7"
    if request.headers.get('Ocp-Apim-Subscription-Key') != KEY: return Reply(401, b'{"error": {"code": "401", "message": "Access denied due to invalid subscription key"}}')
    start = int(request.query['offset'])
    end = min(start + min(size, int(request.query['count'])), n_all)
    value = [dict(contentUrl=f'https://example.org/{n}.jpg', name=f'Bear {n}', thumbnailUrl='', hostPageUrl='https://example.org/', width=640, height=480) for n in range(start, end)]
    return json.dumps(dict(_type='Images', value=value, **({'nextOffset': end} if end < n_all else {}))).encode()


def google_answer(request, n_all=20):
    "The Custom Search JSON API"
    if request.headers.get('X-Goog-Api-Key') != KEY or request.query.get('cx') != CX: return Reply(400, b'{"error": {"details": [{"reason": "API_KEY_INVALID"}]}}')
    start, num = int(request.query['start']), int(request.query['num'])
    items = [dict(link=f'https://example.org/{n}.jpg', title=f'Bear {n}', image=dict(contextLink='https://example.org/', width=640, height=480)) for n in range(start, min(start + num, n_all + 1))]
    return json.dumps(dict(queries=dict(nextPage=[dict(startIndex=start + num)] if start + num <= n_all else []), **({'items': items} if items else {}))).encode()


answers = {'bing_api': bing_answer, 'google': google_answer}
path = {'bing_api': '/v7.0/images/search', 'google': '/customsearch/v1'}
lists = {'bing_api': 'value', 'google': 'items'}
both = pytest.mark.parametrize('name', ['bing_api', 'google'])


def settings(name, web, limits=quick, key=KEY):
    if name == 'bing_api': return dict(key=key, endpoint=web.url, limits=limits)
    return dict(key=key, cx=CX, endpoint=web.url + path[name], limits=limits)


def ask(name, page, n=12, limits=quick, **more):
    "Ask a provider whose one page is `page`; what came, and the server"
    with LoopbackWeb({path[name]: page}) as web: return providers[name]('bears', n, **settings(name, web, limits), **more), web


def refused(name, page, limits=quick):
    with pytest.raises(SearchError) as e: ask(name, page, limits=limits)
    assert e.value.provider == name and '\n' not in str(e.value)
    return str(e.value)


# ---- interfaces with a key

@both
@pytest.mark.parametrize('n', [1, 3, 12, 100])
def test_paging(name, n):
    found, web = ask(name, answers[name], n)
    assert found.attrgot('title') == sorted(set(found.attrgot('title')), key=lambda t: int(t.split()[1])) and len(found) == min(n, 20)
    assert found[0] == SearchResult(found[0].image, 'https://example.org/', found[0].title, '', 640, 480, name, 'bears')
    assert web.hits.total() == {'bing_api': -(-min(n, 20)//4), 'google': -(-min(n, 20)//10)}[name]


@both
def test_an_interface_that_never_ends(name):
    "The same page for ever, or a next page that is this one"
    same = lambda request: json.dumps({lists[name]: [dict(contentUrl='https://example.org/1.jpg', link='https://example.org/1.jpg')], 'nextOffset': int(request.query.get('offset', 0)) + 1,
                                       'queries': {'nextPage': [{'startIndex': int(request.query.get('start', 0)) + 1}]}}).encode()
    found, web = ask(name, same, 100)
    assert (len(found), web.hits.total()) == (1, 2)
    stuck = json.dumps({lists[name]: [dict(contentUrl='https://example.org/1.jpg', link='https://example.org/1.jpg')], 'nextOffset': 0, 'queries': {'nextPage': [{'startIndex': 1}]}}).encode()
    found, web = ask(name, stuck, 100)
    assert (len(found), web.hits.total()) == (1, 1)


@both
def test_a_later_page_that_fails_keeps_what_was_found(name):
    def page(request): return Reply(500) if int(request.query.get('offset', 0)) >= 8 or int(request.query.get('start', 0)) >= 11 else answers[name](request)
    found, _ = ask(name, page, 20)
    assert len(found) in (8, 10) and [e.provider for e in found.errors] == [name] and 'HTTP 500' in str(found.errors[0])


@both
def test_retry_after_is_obeyed(name):
    visits = []
    def page(request):
        visits.append(time.monotonic())
        return answers[name](request) if len(visits) > 1 else Reply(429, headers={'Retry-After': '1'})
    found, _ = ask(name, page, 3, patient)
    assert len(found) == 3 and 1 <= visits[1] - visits[0] < 4


@both
def test_a_long_retry_after_ends_at_once(name):
    start, hits = time.monotonic(), []
    message = refused(name, lambda request: hits.append(1) or Reply(429, headers={'Retry-After': '7200'}), patient)
    assert 'asks to be left alone for 7,200 seconds' in message and time.monotonic() - start < 5 and len(hits) == 1


@both
@pytest.mark.parametrize('status, words, n', [(401, 'the key was refused (HTTP 401)', 1), (403, 'the key was refused (HTTP 403)', 1), (404, 'HTTP 404', 1), (429, 'too many requests', 3), (500, 'HTTP 500', 3), (503, 'HTTP 503', 3)])
def test_refusals(name, status, words, n, monkeypatch):
    "Busy ones are asked again, keys that are refused are not"
    monkeypatch.setattr('bearcls.gather.providers.retry_wait', lambda *args: 0)
    hits = []
    limits = FetchLimits(allow_private=True, tries=3, timeout=20)
    assert words in refused(name, lambda request: hits.append(1) or Reply(status), limits) and len(hits) == n


@both
def test_a_busy_moment(name):
    hits = []
    found, _ = ask(name, lambda request: hits.append(1) or (Reply(503) if len(hits) == 1 else answers[name](request)), 3, patient)
    assert len(found) == 3


@both
@pytest.mark.parametrize('body, words', [
    (b'{"error": {"errors": [{"reason": "dailyLimitExceeded"}]}}', 'its quota is used up (HTTP 403)'),
    (b'{"error": {"message": "Out of call volume quota."}}', 'its quota is used up (HTTP 403)'),
    (b'{"error": {"details": [{"reason": "SERVICE_DISABLED"}]}}', 'not switched on for this key (HTTP 403)')])
def test_reasons_in_the_body(name, body, words): assert words in refused(name, Reply(403, body))


@both
def test_silence(name):
    limits = FetchLimits(allow_private=True, tries=1, timeout=.3, idle=.3)
    assert 'seconds' in refused(name, Reply(wait=5), limits)
    assert 'seconds' in refused(name, Reply(body=b'{"value": []}'*100, stall=5), limits)


@both
def test_nobody_there(name):
    with LoopbackWeb({}) as web: pass
    with pytest.raises(SearchError, match='no connection'): providers[name]('bears', 3, **settings(name, web))


@both
@pytest.mark.parametrize('body', [b'', b'null', b'7', b'<html>', b'[]', b'{"value": 7, "items": "many"}', b'{"value": {}, "items": {}}', b'['*200_000, b'{"value": [', b'\xff\xfe\x00', b'1'*5000])
def test_answers_that_are_none(name, body): assert 'the answer is no list of results' in refused(name, body)


@both
def test_wrong_types_inside(name):
    odd = [None, 7, 'a.jpg', [], {}, dict(contentUrl=7, link=7), dict(contentUrl='', link=''), dict(contentUrl=' \n ', link='\0'),
           dict(contentUrl='https://example.org/a.jpg', link='https://example.org/a.jpg', name=[], title={'a': 1}, width='wide', height=-3, image=7, thumbnailUrl=3, hostPageUrl=None),
           dict(contentUrl='https://example.org/b.jpg', link='https://example.org/b.jpg', name='\ud800 \x00bear', title='\ud800 \x00bear', width=True, height=float('inf'), image={'width': 10**30, 'height': '9'*6000, 'byteSize': 1})]
    found, _ = ask(name, json.dumps({lists[name]: odd, 'nextOffset': 'soon', 'queries': {'nextPage': [7]}}).encode())
    assert [r.image for r in found] == ['https://example.org/a.jpg', 'https://example.org/b.jpg']
    assert {(r.width, r.height) for r in found} == {(None, None)} and found[1].title == 'bear' and found[0].title == found[0].page == ''
    found._repr_html_().encode(), found.table.to_csv().encode()


@both
def test_a_huge_answer(name):
    limits = FetchLimits(allow_private=True, tries=1, max_bytes=100_000)
    assert 'bytes' in refused(name, b' '*200_000, limits)


@both
def test_no_answer_at_all_is_no_error(name): assert ask(name, b'{}')[0] == []


@both
def test_settings_reach_the_interface(name):
    for license in licenses:
        _, web = ask(name, answers[name], 3, license=license, filters={'imgType': 'photo', 'imageType': 'Photo'})
        [url] = web.hits
        assert ('rights=' in url) == (name == 'google') and ('license=' in url) == (name == 'bing_api') and 'hoto' in url
    for safe, word in [(True, 'safeSearch=Strict' if name == 'bing_api' else 'safe=active'), (False, '=Off' if name == 'bing_api' else 'safe=off')]:
        assert word in next(iter(ask(name, answers[name], 3, safe=safe)[1].hits))
    found, _ = ask(name, answers[name], 3, license='modify')
    assert {r.license for r in found} == {'modify (filter)'}


def test_words_in_any_script():
    asked = []
    for name in answers: ask(name, lambda request: asked.append(request.query['q']) or answers[name](request), 3)
    for term in ('медведь & лиса?#', '熊', 'bear+cub%20'):
        with LoopbackWeb({path['google']: lambda request: asked.append(request.query['q']) or google_answer(request)}) as web: search_google(term, 3, **settings('google', web))
    assert asked == ['bears', 'bears', 'медведь & лиса?#', '熊', 'bear+cub%20']


def test_the_closed_interface_says_that_it_is_closed(monkeypatch):
    "Microsoft's address, as far as it can be asked from here: through a proxy that is not there"
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    with pytest.raises(SearchError, match='closed this interface in August 2025.*endpoint='): search_bing_api('bears', 3, key=KEY, limits=quick)


def test_version_and_endpoint_from_the_environment(monkeypatch):
    with LoopbackWeb({'/gateway/bing/v9/images/search': bing_answer}) as web:
        monkeypatch.setenv('BING_SEARCH_ENDPOINT', web.url + '/gateway/bing/')
        monkeypatch.setenv('BING_SEARCH_KEY', f' {KEY}\n')
        assert len(search_bing_api('bears', 3, version='v9', limits=quick)) == 3


def test_inside_a_running_loop():
    async def cell(): return ask('google', google_answer)[0]
    assert len(asyncio.run(cell())) == 12


# ---- secrets

def everything_said(error):
    "All words of an error: its message, its traceback and those of all errors behind it, by whatever link"
    seen, todo, words = set(), [error], []
    while todo:
        if (e := todo.pop()) is None or id(e) in seen: continue
        seen.add(id(e))
        words += [str(e), repr(e), repr(e.args), *traceback.format_exception(type(e), e, e.__traceback__)]
        todo += [e.__cause__, e.__context__]
    return '\n'.join(words)


def leaks(text): return [s for s in (KEY, quote(KEY), quote(KEY, safe=''), html.escape(KEY), base64.b64encode(KEY.encode()).decode(), CX, quote(CX, safe='')) if s in text]


echoes = {
    'echo': lambda r: Reply(403, f'{{"error": {{"message": "key {KEY} cx {CX} refused"}}}}'.encode()),
    'redirect': lambda r: moved(f'http://127.0.0.1:9/?key={quote(KEY)}'),
    'loop': lambda r: moved(r.path + '?' + '&'.join(f'{k}={quote(v)}' for k, v in r.query.items())),
    'strange redirect': lambda r: moved(f'ftp://{quote(KEY, safe="")}@127.0.0.1/'),
    'html': lambda r: KEY.encode(), 'busy': lambda r: Reply(503, KEY.encode(), {'Retry-After': KEY}), 'late': lambda r: Reply(wait=2), 'cut': lambda r: Reply(body=KEY.encode()*100, send=5),
    'huge': lambda r: b' '*2_000_000,
}


@both
@pytest.mark.parametrize('kind', echoes)
def test_a_failing_search_keeps_the_key(name, kind, capfd, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    limits = FetchLimits(allow_private=True, tries=1, timeout=.5, max_bytes=1_000_000)
    with LoopbackWeb({path[name]: echoes[kind]}) as web:
        given = settings(name, web, limits)
        with pytest.raises(SearchError) as e: search_images('bears', 3, name, **given)
        with pytest.raises(SearchError) as both: search_images('bears', 3, ['zoo_closed', name], **{name: given})
    out = capfd.readouterr()
    assert leaks(everything_said(e.value) + everything_said(both.value) + out.out + out.err + caplog.text) == []
    assert not (tmp_path/'cache').exists()


@pytest.fixture(autouse=True)
def closed_zoo(monkeypatch):
    def closed(term, max_images): raise SearchError('zoo_closed', 'the gate is shut', 'Come back in spring')
    monkeypatch.setitem(providers, 'zoo_closed', closed)


@both
def test_a_good_search_keeps_the_key(name, caplog, capfd, tmp_path):
    "Even where the server repeats it in every field"
    caplog.set_level(logging.DEBUG)
    echo = dict.fromkeys(('contentUrl', 'link', 'name', 'title', 'hostPageUrl', 'thumbnailUrl'), f'https://example.org/?{KEY}') | {'image': {'contextLink': KEY}}
    with LoopbackWeb({path[name]: json.dumps({lists[name]: [echo]}).encode()}) as web: found = search_images('bears', 3, name, **settings(name, web))
    kept = [f for f in (tmp_path/'cache').rglob('*') if f.is_file()]
    said = capfd.readouterr()
    assert len(found) == len(kept) == 1
    assert leaks(repr(found) + str(list(found)) + found._repr_html_() + found.table.to_string() + kept[0].read_text() + str(kept[0]) + caplog.text + said.out + said.err) == []


@both
def test_the_key_is_no_part_of_the_cache_name(name, tmp_path):
    "Not even by its digest: a new key finds the old answers"
    page = json.dumps({lists[name]: [dict(contentUrl='https://example.org/', link='https://example.org/')]}).encode()
    with LoopbackWeb({path[name]: page}) as web:
        for key in (KEY, 'another'): search_images('bears', 3, name, **settings(name, web, key=key))
        search_images('bears', 3, name, **settings(name, web) | (dict(cx='other') if name == 'google' else dict(version='v7.0')))
    assert len(list((tmp_path/'cache'/'searches').iterdir())) == 2


@several_hosts
@pytest.mark.skipif(sys.platform == 'darwin', reason='macOS has only one loopback address')
@both
def test_the_key_goes_to_nobody_else(name):
    "A redirect to another host does not carry the key along"
    told = []
    with LoopbackWeb({path[name]: lambda r: moved(f'http://127.0.0.2:{web.port}/elsewhere'), '/elsewhere': lambda r: told.append(str(r)) or b'{}'}, hosts=['127.0.0.1', '127.0.0.2']) as web:
        assert providers[name]('bears', 3, **settings(name, web)) == []
    assert len(told) == 1 and leaks(told[0]) == []


@pytest.mark.parametrize('key', ['', '  ', 'two words', 'line\nbreak', 'schlüssel', '\x7f'])
def test_what_is_no_key_is_not_sent(key):
    for name in answers:
        with LoopbackWeb({path[name]: answers[name]}) as web:
            with pytest.raises(SearchError) as e: providers[name]('bears', 3, **settings(name, web, key=key))
        assert not web.hits and (not key.strip() or key not in str(e.value))


@both
def test_no_key(name):
    with pytest.raises(SearchError) as e: search_images('bears', provider=name, cx=CX) if name == 'google' else search_images('bears', provider=name)
    assert '`key=`' in str(e.value) and provider_metadata(providers[name]).keys['key'] in str(e.value)


# ---- without a key: ddgs's own engines and client, against a server

class ToLoopback:
    "ddgs's client, but every address leads to the server"
    def __init__(self, web):
        from ddgs.http_client import HttpClient
        self.web, self.client = web, HttpClient(timeout=3)

    def request(self, method, url, **options): return self.client.request(method, self.web.url + '/' + url.split('/', 3)[-1] if url.count('/') > 2 else self.web.url + '/', **options)


def duckduckgo_pages(n_all=150):
    def images(request):
        start = int(request.query.get('s', 0))
        return json.dumps(dict(results=[dict(image=f'https://example.org/a%20bear.jpg?id={n}&u=%26', title=f'Bear {n}', url='https://example.org/', width=640, height=480)
                                        for n in range(start, min(start + 100, n_all))])).encode()
    return {'/': b'<html><script>vqd="4-123"</script>', '/i.js': images}


def bing_pages(n_all=50):
    def images(request):
        start = int(request.query['first']) - 1
        links = (json.dumps(dict(murl=f'https://example.org/a%20bear.jpg?id={n}&u=%26', t=f'Bear {n}', purl='https://example.org/')) for n in range(start, min(start + 35, n_all)))
        return '<ul>{}</ul>'.format(''.join(f'<li><div class="imgpt"><a class="iusc" m="{html.escape(m)}"></a></div><div class="img_info"><span class="nowrap">640 × 480 · jpeg</span></div></li>' for m in links)).encode()
    return {'/images/async': images}


free = {'duckduckgo': (search_duckduckgo, duckduckgo_pages, '/i.js'), 'bing': (search_bing, bing_pages, '/images/async')}
either = pytest.mark.parametrize('name', list(free))


@either
def test_ddgs_pages(name):
    search, pages, _ = free[name]
    with LoopbackWeb(pages()) as web: found = search('bears', 120, client=ToLoopback(web))
    assert len(found) == min(120, {'duckduckgo': 150, 'bing': 50}[name])
    assert found[-1] == SearchResult(f'https://example.org/a%20bear.jpg?id={len(found) - 1}&u=%26', 'https://example.org/', f'Bear {len(found) - 1}', '', 640, 480, name, 'bears')


@either
@pytest.mark.parametrize('status', [202, 403, 429, 500, 503])
def test_ddgs_busy(name, status):
    search, pages, path = free[name]
    hits, good = [], pages()[path]
    with LoopbackWeb(pages() | {path: lambda r: hits.append(1) or (Reply(status, b'later') if len(hits) < 3 else good(r))}) as web:
        assert len(search('bears', 10, wait=0, client=ToLoopback(web))) == 10
        hits.clear()
        with pytest.raises(SearchError, match=rf'{name}: HTTP {status} from .* \(2 attempts\)'): search('bears', 10, tries=2, wait=0, client=ToLoopback(web))


@either
def test_ddgs_retry_after(name):
    search, pages, path = free[name]
    hits, good = [], pages()[path]
    with LoopbackWeb(pages() | {path: lambda r: hits.append(time.monotonic()) or (good(r) if len(hits) > 1 else Reply(429, headers={'Retry-After': '1'}))}) as web:
        assert len(search('bears', 10, wait=0, client=ToLoopback(web))) == 10 and 1 <= hits[1] - hits[0] < 4
    with LoopbackWeb(pages() | {path: Reply(429, headers={'Retry-After': '7200'})}) as web:
        with pytest.raises(SearchError, match='left alone for 7,200 seconds'): search('bears', 10, client=ToLoopback(web))
        assert sum(n for p, n in web.hits.items() if p.startswith(path)) == 1


@either
def test_ddgs_other_failures(name):
    search, pages, path = free[name]
    with LoopbackWeb(pages() | {path: Reply(404)}) as web:
        with pytest.raises(SearchError, match='HTTP 404 .*Try another provider'): search('bears', 10, wait=0, client=ToLoopback(web))
    with pytest.raises(SearchError, match='no connection to'): search('bears', 10, wait=0, client=ToLoopback(web))
    with LoopbackWeb(pages() | {'/': Reply(wait=9), path: Reply(wait=9)}) as web:
        client = ToLoopback(web)
        client.client = type(client.client)(timeout=1)
        with pytest.raises(SearchError, match=r'did not answer in time \(2 attempts\)'): search('bears', 10, tries=2, wait=0, client=client)


@pytest.mark.parametrize('body', [b'', b'<html>', b'{"results": 7}', b'{"results": [{"image": 7}, null]}', b'\xff', b'<a m="[1]">', b'<a m=\'{"murl": 7}\'>', b'<!--', b'<'*10_000])
def test_ddgs_strange_answers(body):
    for name, (search, pages, path) in free.items():
        with LoopbackWeb(pages() | {path: body}) as web, suppress(SearchError):
            assert search('bears', 10, wait=0, client=ToLoopback(web)) == []


def test_duckduckgo_without_a_token():
    with LoopbackWeb(duckduckgo_pages() | {'/': b'<html>Are you a robot?'}) as web:
        with pytest.raises(SearchError, match='gave no token for a search'): search_duckduckgo('bears', 10, wait=0, client=ToLoopback(web))


@either
def test_ddgs_settings(name):
    search, pages, path = free[name]
    for license in licenses:
        with LoopbackWeb(pages()) as web: search('bears', 5, license=license, client=ToLoopback(web))
        [url] = [u for u in web.hits if u.startswith(path)]
        assert 'license' in url and ('p=1' in url if name == 'duckduckgo' else 'adlt=strict' in url)
    with LoopbackWeb(pages()) as web: search('bears', 5, safe=False, client=ToLoopback(web))
    assert any('p=-1' in u or 'adlt=off' in u for u in web.hits)


# ---- the chain and the cache

@pytest.fixture
def zoo(monkeypatch):
    "A provider whose answers are kept, and the list of what it was asked"
    asked = []
    @provider('zoo', cached=True)
    def search_zoo(term, max_images, safe=True, license=None, colour='brown', n_all=10):
        asked.append((term, max_images, safe, license, colour))
        return [SearchResult(f'https://zoo.org/{term}/{colour}/{n}.jpg', provider='zoo', term=term) for n in range(min(n_all, max_images))]
    yield asked
    del providers['zoo']


def test_what_is_kept(zoo, tmp_path):
    first = search_images('grizzly', 5, 'zoo')
    assert search_images(' grizzly ', 5, 'zoo') == first and search_images('grizzly', 2, 'zoo') == first[:2] and len(zoo) == 1
    for more in (dict(safe=False), dict(license='share'), dict(colour='black'), dict(max_images=7), dict(term='teddy'), dict(refresh=True), dict(cache=False)):
        n = len(zoo)
        search_images(**{**dict(term='grizzly', max_images=5, provider='zoo'), **more})
        assert len(zoo) == n + 1, more
    n = len(zoo)
    assert len(search_images('grizzly', 100, 'zoo')) == 10 and len(zoo) == n + 1
    assert len(search_images('grizzly', 200, 'zoo')) == 10 and len(zoo) == n + 1  # the zoo has no more
    assert len(search_images('grizzly', 5, 'zoo', cache=tmp_path/'here')) == 5 and len(list((tmp_path/'here').iterdir())) == 1


def test_what_is_not_kept(zoo, tmp_path, bears):
    search_images('penguin', 5, 'zoo', n_all=0)
    search_images('bear', 5, 'local', source=bears)
    search_images('bear', 5, lambda term, max_images: [SearchResult('https://example.org/a.jpg')])
    def half(term, max_images): return SearchResults([SearchResult('https://example.org/a.jpg')], [SearchError('half', 'broke off', 'Again')])
    provider('half', cached=True)(half)
    assert [e.provider for e in search_images('bear', 5, 'half').errors] == ['half']
    del providers['half']
    with pytest.raises(SearchError): search_images('bear', 5, 'zoo_closed')
    assert not (tmp_path/'cache').exists()


def test_a_provider_replaced_by_the_user_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setitem(providers, 'duckduckgo', lambda term, max_images, **options: [SearchResult('https://example.org/a.jpg')])
    assert len(search_images('bear', 1)) == 1 and not (tmp_path/'cache').exists()


@pytest.mark.parametrize('spoilt', ['', '{', '[]', 'null', '{"results": 7}', '{"results": []}', '{"results": [{"image": "https://evil.org/"}]}', '{"provider": "zoo", "term": "grizzly", "asked": "5", "results": [{"image": "https://evil.org/"}]}',
                                    '{"provider": "zoo", "term": "teddy", "asked": 5, "results": [{"image": "https://evil.org/"}]}', '\ud800'])
def test_a_spoilt_file_is_written_anew(zoo, tmp_path, spoilt):
    first = search_images('grizzly', 5, 'zoo')
    [file] = (tmp_path/'cache'/'searches').iterdir()
    good = file.read_bytes()
    file.write_bytes(spoilt.encode('utf-8', 'surrogatepass'))
    assert search_images('grizzly', 5, 'zoo') == first and len(zoo) == 2 and file.read_bytes() == good


def test_a_cache_that_cannot_be_written(zoo, tmp_path):
    (tmp_path/'cache').write_text('a file, where a folder should be')
    with pytest.warns(UserWarning, match='could not be stored'): assert len(search_images('grizzly', 5, 'zoo')) == 5


def test_a_folder_in_place_of_the_file(zoo, tmp_path):
    search_images('grizzly', 5, 'zoo')
    [file] = (tmp_path/'cache'/'searches').iterdir()
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match='could not be stored'): assert len(search_images('grizzly', 5, 'zoo')) == 5


def test_names_of_files_are_tame(zoo, tmp_path):
    for term in ('../../etc/passwd', 'CON', 'a'*5000, '熊', 'a/b\\c:d*e?"<>|', '.'):
        search_images(term, 2, 'zoo')
        assert search_images(term, 2, 'zoo')[0].term == term
    files = list((tmp_path/'cache').rglob('*.json'))
    assert len(files) == len(zoo) == 6 and {f.parent for f in files} == {tmp_path/'cache'/'searches'}
    assert all(f.name.isascii() and len(f.name) < 100 for f in files)


def test_many_at_once(zoo):
    results = []
    threads = [threading.Thread(target=lambda: results.append(search_images('grizzly', 5, 'zoo'))) for _ in range(20)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(results) == 20 and all(r == results[0] for r in results)
    assert [f.suffix for f in (cache_folder()/'searches').iterdir()] == ['.json']


def test_a_run_again_asks_nothing():
    "The whole way, with a real interface"
    with LoopbackWeb({path['google']: google_answer}) as web:
        first = search_images('bears', 15, 'google', **settings('google', web))
        n = web.hits.total()
        again = search_images('bears', 15, 'google', **settings('google', web))
        assert (again, web.hits.total(), n) == (first, 2, 2)


def test_the_default_chain(monkeypatch):
    asked = []
    def made(name, n): return lambda term, max_images, **options: asked.append(name) or [SearchResult(f'https://{name}.org/{k}.jpg') for k in range(n)]
    monkeypatch.setitem(providers, 'duckduckgo', made('duckduckgo', 3))
    monkeypatch.setitem(providers, 'bing', made('bing', 3))
    assert len(search_images('bear', 5)) == 5 and asked == ['duckduckgo', 'bing']
    asked.clear()
    assert len(search_images('bear', 3)) == 3 and asked == ['duckduckgo']


def test_one_image_from_two_providers_counts_once():
    one = lambda term, max_images: [SearchResult('http://Example.org/a.jpg?x=1#top'), SearchResult('https://example.org/a.jpg?x=2')]
    two = lambda term, max_images: [SearchResult('https://example.org:443/a.jpg?x=1'), SearchResult('https://example.org/b.jpg')]
    two.__name__ = 'two'
    assert [r.image for r in search_images('bear', 10, [one, two])] == ['http://Example.org/a.jpg?x=1#top', 'https://example.org/a.jpg?x=2', 'https://example.org/b.jpg']


def test_a_key_is_told_to_its_own_provider_only():
    got = {}
    def greedy(term, max_images, **options): return got.update(options) or []
    with pytest.raises(Exception, match='could be meant for greedy or google') as e: search_images('bear', provider=[greedy, 'google'], key=KEY, cx=CX)
    assert got == {} and leaks(everything_said(e.value)) == []


# ---- results

def test_thumbnails_from_hostile_servers(tmp_path):
    pages = {'/good': image_bytes(), '/html': b'<html>', '/bomb': bomb(), '/gone': Reply(404), '/cut': image_bytes()[:300], '/large': b'\xff'*6_000_000, '/late': Reply(wait=9)}
    limits = FetchLimits(allow_private=True, tries=1, timeout=1, max_bytes=5_000_000)
    with LoopbackWeb(pages) as web:
        found = SearchResults([SearchResult(f'https://example.org/{p}', thumbnail=web.url + p) for p in pages] + [SearchResult('file:///etc/hostname'), SearchResult('data:,x'), SearchResult('::')])
        shown = found.with_thumbnails(20, limits=limits)
        assert [r.thumbnail.startswith('data:image/jpeg;base64,') for r in shown] == [True] + [False]*9
        assert [r for r in shown[1:]] == [r for r in found[1:]]
        n = web.hits.total()
        assert found.with_thumbnails(20) == found and web.hits.total() == n  # this machine is private
        assert found.with_thumbnails(0) == found and web.hits.total() == n


def test_only_the_local_provider_opens_files(tmp_path):
    file = tmp_path/'a.jpg'
    file.write_bytes(image_bytes())
    for name, shows in [('local', True), ('google', False), ('', False)]:
        assert ('<img' in results_html([SearchResult(file.as_uri(), provider=name)])) == shows


def test_nothing_from_outside_becomes_markup():
    evil = '"><script>alert(1)</script>'
    page = results_html(SearchResults([SearchResult('data:image/png,' + evil, evil, evil, 'javascript:' + evil, provider=evil, term=evil, license=evil)], [SearchError(evil, evil, evil)]))
    assert '<script' not in page


def test_written_and_read_back(tmp_path):
    found = SearchResults([SearchResult('https://example.org/熊.jpg', title='"quoted", \n and more', width=3)])
    file = write_results(tmp_path/'a.json', found)
    assert read_results(file)[0].image == found[0].image and read_results(file)[0].width == 3


def test_importing_is_light():
    code = 'import sys, bearcls.gather.search; print(*sorted({"torch", "fastai", "pandas", "ddgs", "matplotlib"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == ''
