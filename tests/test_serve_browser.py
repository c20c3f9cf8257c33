"The page of the HTTP service in a real browser: the images of the notebook application's test, answers in their own cards, and nothing from other hosts"
import io, os, threading, time
import numpy as np
import pytest
from PIL import Image
from tiny_bundle import furs, make_bundle
from uploads import image_bytes

for module in ('fastapi', 'uvicorn', 'prometheus_client'): pytest.importorskip(module, reason=f'{module} is not installed')
from bearcls.images import load_image
from bearcls.inference.classifier import Classifier
from bearcls.serve.service import Settings, serving

@pytest.fixture(scope='module')
def bundle(tmp_path_factory): return make_bundle(tmp_path_factory.mktemp('page')/'furs')

@pytest.fixture(scope='module')
def url(bundle):
    with serving(bundle) as address: yield address

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Every kind of file that people choose"
    folder, veil, sideways = tmp_path_factory.mktemp('files'), io.BytesIO(), Image.Exif()
    Image.new('RGBA', (300, 300), (0, 0, 0, 0)).save(veil, 'PNG')
    sideways[0x0112] = 6
    between = tuple((a + b)//2 for a, b in zip(furs['black'], furs['brown']))
    for name, content in {'brown.jpg': image_bytes(furs['brown']), 'white.png': image_bytes('white', format='PNG'), 'sideways.jpg': image_bytes('white', (900, 400), exif=sideways),
        'twelve.jpg': image_bytes(furs['brown'], (4000, 3000), noise=60, quality=95), 'large.png': image_bytes(furs['brown'], (3700, 2950), 'PNG', noise=60, compress_level=1), 'alpha.png': veil.getvalue(),
        'web.webp': image_bytes('white', format='WEBP'), 'doubt.png': image_bytes(between, format='PNG'), 'text.jpg': b'this is text', 'empty.jpg': b'', 'scan.tif': image_bytes('white', format='TIFF'),
        'huge.bin.jpg': os.urandom(9_000_000), '<img src=x onerror=alert(1)>.png': image_bytes('white', format='PNG')}.items(): (folder/name).write_bytes(content)
    assert (folder/'large.png').stat().st_size > 29_000_000
    return folder

expected = {'brown.jpg': 'brown', 'sideways.jpg': 'white', 'twelve.jpg': 'brown', 'web.webp': 'white', 'large.png': 'brown', 'alpha.png': 'white', 'doubt.png': 'Ask a person', 'text.jpg': 'no image of a known format',
    'empty.jpg': '', 'scan.tif': 'white', 'huge.bin.jpg': 'too much to send', '<img src=x onerror=alert(1)>.png': 'white'}

class Page:
    "The page, and what it asked for"
    def __init__(self, tab, url):
        self.tab, self.url, self.hosts, self.trouble = tab, url, set(), []
        tab.on('request', lambda r: self.hosts.add(r.url.split('/')[2]) if r.url.startswith('http') else None)
        tab.on('pageerror', lambda e: self.trouble.append(str(e)))
        tab.on('console', lambda m: self.trouble.append(m.text) if 'Content Security Policy' in m.text else None)
        tab.add_init_script('const fetched = window.fetch; window.bodies = []; window.fetch = (path, options) => { if (options?.body) window.bodies.push(options.body); return fetched(path, options); }')
        tab.goto(url)

    @property
    def sent(self): return self.tab.evaluate('() => window.bodies.map((body) => body.size)')  # bytes of each image since the page was opened

    def last(self): return load_image(bytes(self.tab.evaluate('async () => Array.from(new Uint8Array(await window.bodies.at(-1).arrayBuffer()))')))  # the image that was sent last

    @property
    def cards(self): return self.tab.locator('.bq-card')

    def give(self, *paths):
        with self.tab.expect_file_chooser() as chooser: self.tab.get_by_role('button', name='Choose images').click()
        chooser.value.set_files([str(p) for p in paths])

    def choose(self, *paths):
        self.give(*paths)
        return self.answers(len(paths))

    def answers(self, n):
        end = time.monotonic() + 120
        while not (self.cards.count() == n and not self.tab.locator('.bq-card[data-state=waiting]').count()):
            assert time.monotonic() < end, f'no answer: {self.cards.all_inner_texts()}'
            time.sleep(.02)
        return {card.get_attribute('data-name'): card.locator('.bq-head strong, .bq-problem').inner_text() for card in self.cards.all()}

@pytest.fixture(params=[('light', 1200), ('dark', 360)], ids=['light', 'dark'])
def page(browser, url, request):
    scheme, width = request.param
    with browser.new_page(viewport=dict(width=width, height=800), color_scheme=scheme) as tab: yield Page(tab, url)

def shot(tab, name):
    "A still for people to look at, where BEARCLS_SHOTS names a folder"
    if folder := os.environ.get('BEARCLS_SHOTS'): tab.screenshot(path=f'{folder}/{name}.png', full_page=True)

def test_every_kind_of_file(page, files):
    for name in (*expected, 'brown.jpg'):
        before = len(page.sent)
        found = page.choose(files/name)
        assert list(found) == [name] and expected[name] in found[name] and found[name], found
        if name not in ('scan.tif', 'huge.bin.jpg'): assert max(page.sent[before:], default=0) <= 200_000, (name, page.sent)
        assert len(page.sent) > before or name in ('empty.jpg', 'huge.bin.jpg'), name
    assert page.tab.title() == 'black, brown or white?' and page.tab.locator('h1').inner_text() == page.tab.title()
    assert page.tab.evaluate('document.documentElement.scrollWidth <= window.innerWidth'), 'the page is wider than the screen'
    assert page.hosts == {page.url.split('/')[2]} and not page.trouble, page.trouble
    text = page.tab.content()
    assert 'Traceback' not in text and '/tmp' not in text

def test_several_at_once(page, files):
    names = ['brown.jpg', 'white.png', 'doubt.png', 'text.jpg', 'sideways.jpg', 'alpha.png']
    found = page.choose(*[files/name for name in names])
    assert list(found) == names and [found[n] for n in ('brown.jpg', 'white.png', 'sideways.jpg')] == ['brown', 'white', 'white'] and 'no image' in found['text.jpg']
    shot(page.tab, f'several_{page.tab.viewport_size["width"]}')

def test_key(browser, bundle, files):
    with serving(bundle, Settings(api_key='sesame')) as url, browser.new_page(viewport=dict(width=360, height=700)) as tab:
        page = Page(tab, url)
        field = tab.get_by_label('This service asks for a key')
        field.fill('wrong')
        shot(tab, 'key')
        tab.get_by_role('button', name='Go on').click()
        tab.get_by_text('That is not the key.').wait_for()
        field.fill('sesame')
        field.press('Enter')
        assert page.choose(files/'brown.jpg') == {'brown.jpg': 'brown'}
        assert not field.is_visible() and not page.trouble

def test_key_that_changes_or_cannot_be_one(browser, bundle, files):
    with serving(bundle, Settings(api_key='sesame')) as url, browser.new_page() as tab:
        page = Page(tab, url)
        field = tab.get_by_label('This service asks for a key')
        focused = lambda: tab.evaluate('() => document.activeElement.name || document.activeElement.textContent')
        field.fill('schlüssel')
        field.press('Enter')
        tab.get_by_text('That is not the key.').wait_for()
        assert field.is_visible() and focused() == 'key' and tab.locator('#trouble').inner_text() == 'That is not the key.'
        field.fill(' sesame ')
        field.press('Enter')
        tab.locator('.bq-drop').wait_for()
        assert focused() == 'Choose images' and not tab.locator('#trouble').inner_text()
        tab.route('**/predict', lambda route: route.fulfill(status=401, content_type='application/problem+json', body='{"detail": "a key is needed"}'))
        found = page.choose(files/'brown.jpg', files/'white.png')
        assert set(found.values()) == {'This service asks for a key.'} and field.is_visible() and focused() == 'key'
        assert tab.locator('#trouble').inner_text() == 'That is not the key.'
        tab.unroute('**/predict')
        field.fill('sesame')
        field.press('Enter')
        field.wait_for(state='hidden')
        assert tab.locator('.bq-drop').count() == 1 and focused() == 'Choose images'
        assert page.choose(files/'brown.jpg') == {'brown.jpg': 'brown'} and not page.trouble

def noise(size):
    "An image that does not pack well, darker above and to the left"
    grain = np.random.default_rng(0).integers(0, 100, (size[1], size[0], 3))
    return Image.fromarray((grain + np.linspace(0, 100, size[1])[:, None, None] + np.linspace(0, 50, size[0])[None, :, None]).astype(np.uint8))

def test_turned_webp(browser, url, tmp_path):
    "Chromium does not heed the orientation of these, Pillow does"
    exif = Image.Exif()
    with browser.new_page() as tab:
        page = Page(tab, url)
        for k in range(1, 9):
            exif[0x0112] = k
            noise((900, 700)).save(tmp_path/f'{k}.webp', exif=exif, quality=95, method=0)
            assert (tmp_path/f'{k}.webp').stat().st_size > 200_000
            page.choose(tmp_path/f'{k}.webp')
            theirs, ours = page.last(), load_image(tmp_path/f'{k}.webp')
            assert theirs.size == ours.size and np.abs(np.subtract(*[np.asarray(i.resize((16, 16)), int) for i in (theirs, ours)])).max() < 12, k
            assert tab.locator('.bq-image canvas').evaluate('c => c.width > c.height') == (k < 5)

def test_long_narrow_images_stay_as_wide_as_they_are(browser, url, tmp_path):
    with browser.new_page() as tab:
        page = Page(tab, url)
        for size in ((12_000, 50), (50, 12_000), (20_000, 300)):
            noise(size).save(tmp_path/'long.png')
            page.choose(tmp_path/'long.png')
            theirs = page.last()
            assert min(theirs.size) >= min(64, *size) and max(theirs.size)/min(theirs.size) == pytest.approx(max(size)/min(size), rel=.02)
        for size in ((60_000, 60), (70_000, 60)):
            noise(size).save(tmp_path/'long.png', compress_level=1)
            assert 'cannot be made small enough to be sent' in page.choose(tmp_path/'long.png')['long.png'] and max(tab.locator('canvas').evaluate_all('c => c.map((c) => c.width)'), default=0) <= 8192

def test_busy_and_gone(browser, bundle, files):
    gate = threading.Event()
    class Held(Classifier):
        def predict_rows(self, named):
            gate.wait(60)
            return super().predict_rows(named)
    with serving(Held(bundle, threads=1), Settings(threads=1, max_waiting=1, max_images=1)) as url, browser.new_page() as tab:
        try:
            page = Page(tab, url)
            page.give(*[files/'white.png']*5)
            refused = tab.locator('.bq-problem', has_text='Too many people are asking')
            refused.nth(1).wait_for(timeout=60_000)  # one is at work, one waits
        finally: gate.set()
        found = page.answers(5)
        assert refused.count() >= 2 and found['white.png']
        tab.route('**/predict', lambda route: route.abort())
        assert 'cannot be reached' in page.choose(files/'brown.jpg')['brown.jpg']
