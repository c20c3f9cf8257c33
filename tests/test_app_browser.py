"The notebook application, in Voilà, JupyterLab and Notebook 7, in a real browser"
import io, json, os, time
from pathlib import Path
import pytest
from PIL import Image
from tiny_bundle import furs, make_bundle

pytest.importorskip('voila', reason='voila is not installed')
pytest.importorskip('anywidget', reason='anywidget is not installed')
from bearcls.app.feedback import Feedback
from bearcls.app.notebook import serve_app, write_app
from bearcls.rollout.registry import Registry
from bearcls.sample.standins import colour_model
from test_app import small_server, wait_until
from front_ends import check_contrasts, front_url, fronts, idle, jupyter, setting
from uploads import image_bytes

sideways = Image.Exif()
sideways[0x0112] = 6
between = tuple((a + b)//2 for a, b in zip(furs['black'], furs['brown']))

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Every kind of file that people choose"
    folder, veil = tmp_path_factory.mktemp('files'), io.BytesIO()
    Image.new('RGBA', (300, 300), (0, 0, 0, 0)).save(veil, 'PNG')
    for name, content in {
        'brown.jpg': image_bytes(furs['brown']), 'white.png': image_bytes('white', format='PNG'), 'sideways.jpg': image_bytes('white', (900, 400), exif=sideways),
        'twelve.jpg': image_bytes(furs['brown'], (4000, 3000), noise=60, quality=95), 'large.png': image_bytes(furs['brown'], (3700, 2950), 'PNG', noise=60, compress_level=1),
        'alpha.png': veil.getvalue(), 'web.webp': image_bytes('white', format='WEBP'), 'new.avif': image_bytes(furs['brown'], format='AVIF'), 'doubt.png': image_bytes(between, format='PNG'),
        'text.jpg': b'this is text', 'empty.jpg': b'', 'half.jpg': image_bytes('white', (2000, 1500), noise=30)[:250_000], 'scan.tif': image_bytes('white', (1600, 1640), 'TIFF'),
        'huge.bin.jpg': os.urandom(9_000_000), '<img src=x onerror=alert(1)>.png': image_bytes('white', format='PNG'),
    }.items(): (folder/name).write_bytes(content)
    assert 7_800_000 < (folder/'scan.tif').stat().st_size < 8_000_000  # close to the most that is sent as it is
    assert (folder/'large.png').stat().st_size > 29_000_000 and (folder/'twelve.jpg').stat().st_size > 5_000_000
    return folder

expected = {'brown.jpg': 'brown', 'white.png': 'white', 'sideways.jpg': 'white', 'twelve.jpg': 'brown', 'large.png': 'brown', 'alpha.png': 'white', 'web.webp': 'white', 'new.avif': 'brown',
    'scan.tif': 'white', 'doubt.png': 'None of these? Ask a person', 'text.jpg': 'the file is no image of a known format', 'empty.jpg': 'the file holds no bytes',
    'half.jpg': 'ends before the image does', 'huge.bin.jpg': 'too much to send', '<img src=x onerror=alert(1)>.png': 'white'}

# ---------------------------------------------------------------- two places

@pytest.fixture(scope='module')
def bundle(tmp_path_factory): return make_bundle(tmp_path_factory.mktemp('voila')/'furs')

@pytest.fixture(scope='module')
def voila(bundle):
    with serve_app(bundle, timeout=180) as url: yield bundle.parent, url

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lab')
    write_app(make_bundle(folder/'furs'), folder)
    with jupyter(folder) as url: yield folder, url

class Place:
    "A page with the application, and what it has exchanged with whom"
    def __init__(self, tab, folder, url, front='voila'):
        self.tab, self.folder, self.is_voila, self.sent, self.hosts, self.errors = tab, folder, front == 'voila', [], set(), []
        self.url = url if self.is_voila else front_url(url, front, 'app')
        tab.set_default_timeout(120_000)
        tab.on('websocket', lambda socket: socket.on('framesent', lambda frame: self.sent.append(len(frame))))
        tab.on('response', lambda r: self.hosts.add(r.url.split('/')[2]) if r.url.startswith('http') else None)
        tab.on('pageerror', lambda e: self.errors.append(str(e)))
        tab.on('filechooser', lambda chooser: None)  # choosers are caught from the start, not only when one is waited for: a key is faster than that
        self.open()

    def open(self):
        self.tab.goto(self.url)
        if not self.is_voila:
            idle(self.tab)
            self.tab.locator('.jp-NotebookPanel .jp-InputArea-editor').first.click()
            self.tab.keyboard.press('Control+Enter')
        self.button.wait_for()
        if self.is_voila: self.kernel = json.loads(self.tab.locator('#jupyter-config-data').text_content())['kernelId']

    @property
    def button(self): return self.tab.get_by_role('button', name='Choose images')
    @property
    def cards(self): return self.tab.locator('.bq-card')
    @property
    def status(self): return self.tab.locator('.bq-status').inner_text()

    def choose(self, *paths, wait=True):
        "Choose files as a visitor does, and wait until each has an answer"
        with self.tab.expect_file_chooser() as chooser: self.button.click()
        chooser.value.set_files([str(p) for p in paths])
        if wait: self.wait(len(paths))

    def wait(self, n, timeout=180):
        end = time.monotonic() + timeout
        while not (self.cards.count() == n and not self.tab.locator('.bq-card[data-state=waiting]').count()):
            assert time.monotonic() < end, f'no answer: {self.cards.all_inner_texts()}'
            time.sleep(.02)

    def names(self): return self.cards.evaluate_all('cards => cards.map((card) => card.dataset.name)')

    def answers(self):
        "Name of each image, and what stands beside it"
        return {card.get_attribute('data-name'): card.locator('.bq-head strong, .bq-problem').inner_text() for card in self.cards.all()}

@pytest.fixture(params=['voila', 'lab', 'notebook'])
def place(browser, request):
    folder, url = request.getfixturevalue('voila' if request.param == 'voila' else 'lab')
    with browser.new_page(viewport=dict(width=1200, height=900), permissions=['clipboard-read', 'clipboard-write', 'camera']) as tab:
        yield Place(tab, folder, url, request.param)

two_places = pytest.mark.parametrize('place', ['voila', 'lab'], indirect=True)  # for what takes long, and is the same in Notebook 7 as in JupyterLab

@pytest.fixture(params=[('light', 1200), ('dark', 360)], ids=['light', 'dark'])
def page(browser, voila, request):
    "Voilà only, in two shapes"
    scheme, width = request.param
    with browser.new_page(viewport=dict(width=width, height=800), color_scheme=scheme) as tab: yield Place(tab, *voila)

# ---------------------------------------------------------------- answers

@two_places
def test_every_kind_of_file(place, files):
    "Right answer or a clear sentence each time, never the one before, and no large message for anything that the browser can open"
    for name in ('brown.jpg', 'sideways.jpg', 'twelve.jpg', 'web.webp', 'large.png', 'alpha.png', 'new.avif', 'doubt.png', 'text.jpg', 'empty.jpg', 'half.jpg', 'scan.tif', 'huge.bin.jpg',
                 '<img src=x onerror=alert(1)>.png', 'brown.jpg'):
        before = len(place.sent)
        place.choose(files/name)
        found = place.answers()
        assert list(found) == [name] and expected[name] in found[name], found
        sent = place.sent[before:]
        if name not in ('half.jpg', 'scan.tif'): assert max(sent, default=0) <= 200_000, (name, sent)
        assert sent or name in ('empty.jpg', 'huge.bin.jpg'), name
        size = place.tab.locator('.bq-image canvas').evaluate_all('c => c.map(c => [c.width, c.height])')
        if name == 'sideways.jpg': assert size[0][0] < size[0][1], 'it lies on its side'
        if 'problem' in place.cards.first.get_attribute('data-state'): assert not size, 'an image stands beside a problem'
    assert place.tab.locator('.bq-bars li').count() == 3
    html = place.tab.locator('.bearcls-classify').inner_html()
    assert 'Traceback' not in html and 'site-packages' not in html and str(place.folder) not in html and not place.errors
    assert place.hosts == {place.url.split('/')[2]}, 'the page asked other hosts'

@two_places
def test_several_at_once(place, files):
    names = ['brown.jpg', 'white.png', 'text.jpg', 'sideways.jpg', 'empty.jpg', 'web.webp', 'doubt.png', 'twelve.jpg', 'alpha.png', 'new.avif', 'scan.tif', 'large.png']
    place.choose(*[files/name for name in names])
    found = place.answers()
    assert list(found) == names and all(expected[name] in found[name] for name in names), found
    assert place.status == 'All 12 images are done.'

@two_places
def test_no_stale_answer(place, files):
    "New images are chosen while many old ones are worked on: these are gone at once, and stay away"
    place.choose(files/'white.png')
    place.choose(*[files/'large.png']*5, *[files/'sideways.jpg']*30, wait=False)
    assert 'white.png' not in place.names(), 'the old answer is still there'
    place.tab.locator('.bq-card[data-state=answered]').first.wait_for()
    place.choose(files/'white.png', wait=False)
    seen = []
    for _ in range(60):
        seen += place.names()
        time.sleep(.03)
    place.wait(1)
    assert set(seen) == {'white.png'} and place.answers() == {'white.png': 'white'}

def test_same_file_twice(place, files):
    for _ in range(2):
        place.choose(files/'white.png')
        assert place.answers() == {'white.png': 'white'}
        place.choose(files/'text.jpg')
        assert 'no image' in place.answers()['text.jpg']

# ---------------------------------------------------------------- other ways in

give = """(data, kind) => {
  const bytes = Uint8Array.from(atob(data.content), (c) => c.charCodeAt(0)), transfer = new DataTransfer();
  if (data.name) transfer.items.add(new File([bytes], data.name, {type: 'image/jpeg'}));
  else transfer.setData('text/plain', 'words');
  const target = document.querySelector('.bq-main');
  if (data.kind === 'paste') target.dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true, cancelable: true}));
  else for (const name of ['dragenter', 'dragover', 'drop']) target.dispatchEvent(new DragEvent(name, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""

@pytest.mark.parametrize('kind', ['paste', 'drop'])
def test_paste_and_drop(place, files, kind):
    import base64
    content = base64.b64encode((files/'brown.jpg').read_bytes()).decode()
    place.tab.evaluate(give, dict(kind=kind, name='brown.jpg', content=content))
    place.wait(1)
    assert place.answers() == {'brown.jpg': 'brown'}
    if kind == 'paste':
        place.tab.evaluate(give, dict(kind=kind, name='', content=''))
        assert place.status == 'There is no image in the clipboard.' and not place.cards.count()

def test_pasted_with_keys(page, files):
    "As people do: copied elsewhere, then Ctrl+V on the page"
    page.tab.context.grant_permissions(['clipboard-read', 'clipboard-write'])
    page.tab.evaluate("""async () => {
      const canvas = document.createElement('canvas');
      Object.assign(canvas, {width: 200, height: 200}).getContext('2d').fillStyle = 'white';
      const context = canvas.getContext('2d');
      context.fillRect(0, 0, 200, 200);
      await navigator.clipboard.write([new ClipboardItem({'image/png': await new Promise((done) => canvas.toBlob(done))})]);
    }""")
    page.tab.keyboard.press('Control+v')
    page.wait(1)
    assert list(page.answers().values()) == ['white']

def test_camera(place):
    take = place.tab.get_by_role('button', name='Take a photo')
    take.click()
    window = place.tab.get_by_role('dialog', name='Camera')
    window.get_by_role('button', name='Cancel').click()
    window.wait_for(state='hidden')
    assert not place.tab.locator('.bq-video').evaluate('v => Boolean(v.srcObject)'), 'the camera stays on'
    take.click()
    place.tab.wait_for_function("document.querySelector('.bq-video').videoWidth")
    window.get_by_role('button', name='Take the photo').click()
    place.wait(1)
    assert list(place.answers()) == ['camera.jpg'] and place.tab.locator('.bq-bars li').count() == 3

def test_no_camera(page):
    "Where there is none, nothing offers one; where it is refused, a sentence says so"
    page.tab.get_by_role('button', name='Take a photo').wait_for()  # it appears once the browser has named its cameras
    page.tab.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); }; }")
    page.tab.get_by_role('button', name='Take a photo').click()
    page.tab.get_by_text('The camera may not be used here.').wait_for()
    page.tab.evaluate("""() => {
      navigator.mediaDevices.enumerateDevices = async () => [];
      navigator.mediaDevices.dispatchEvent(new Event('devicechange'));
    }""")
    page.tab.get_by_role('button', name='Take a photo').wait_for(state='hidden')

# ---------------------------------------------------------------- votes

def test_votes(place, files):
    "Kept in SQLite; the last one counts"
    store = Feedback(place.folder/'feedback.sqlite')
    before = len(store.rows())
    place.choose(files/'brown.jpg', files/'doubt.png')
    card = place.cards.first
    card.get_by_role('button', name='Right').click()
    card.get_by_text('Thank you.').wait_for()
    card.get_by_role('button', name='Wrong').click()
    card.get_by_text('What would be right?').wait_for()
    card.get_by_label('What would be right').select_option('none of these')
    card.get_by_text('Thank you.', exact=True).wait_for()
    place.cards.nth(1).get_by_role('button', name='Wrong').click()
    place.cards.nth(1).get_by_text('What would be right?').wait_for()
    votes = store.rows()[before:]
    assert [(v.name, v.label, v.right, v.correct, v.trusted) for v in votes[:1]] == [('brown.jpg', 'brown', False, 'other', True)]
    assert [(v.name, v.right, v.correct, v.trusted) for v in votes[1:]] == [('doubt.png', False, '', False)]
    assert card.get_by_role('button', name='Wrong').get_attribute('aria-pressed') == 'true' and card.get_by_role('button', name='Right').get_attribute('aria-pressed') == 'false'

def test_votes_on_answers_of_two_models(browser, tmp_path):
    "Another champion answers the next image; a vote on an earlier answer still chooses among the labels of its model"
    registry = Registry(tmp_path/'models')
    first = registry.add(make_bundle(tmp_path/'first')).id
    second = registry.add(make_bundle(tmp_path/'second', ['night', 'dusk', 'day'], colour_model(sharpness=61))).id
    registry.promote(first)
    image = tmp_path/'brown.jpg'
    image.write_bytes(image_bytes(furs['brown']))
    def labels(card):
        card.get_by_role('button', name='Wrong').click()
        card.get_by_text('What would be right?').wait_for()
        return card.get_by_label('What would be right').locator('option').all_inner_texts()[1:]
    with serve_app(f'{registry.folder}@champion', timeout=180, feedback=tmp_path/'votes.sqlite') as url, browser.new_page() as tab:
        place = Place(tab, tmp_path, url)
        place.choose(image)
        registry.promote(second)
        assert place.answers() == {'brown.jpg': 'brown'} and labels(place.cards.first) == ['black', 'white', 'none of these']
        place.cards.first.get_by_label('What would be right').select_option('white')
        place.cards.first.get_by_text('Thank you.', exact=True).wait_for()
        place.choose(image)
        assert place.answers() == {'brown.jpg': 'dusk'} and labels(place.cards.first) == ['day', 'night', 'none of these']
        assert place.errors == []
    votes = Feedback(tmp_path/'votes.sqlite').rows()
    assert [(v.label, v.correct, v.model[:12]) for v in votes] == [('brown', 'white', first), ('dusk', '', second)]

# ---------------------------------------------------------------- hands, eyes and ears

def focus(button):
    "Give it the focus, also where JupyterLab takes it away some moments after a cell was run"
    for _ in range(20):
        button.focus()
        time.sleep(.3)
        if button.evaluate('e => e === document.activeElement'): return
    raise AssertionError('the focus does not stay')

def test_trouble_with_the_log_is_said(browser, tmp_path):
    "In the page, and only while it lasts"
    bundle = make_bundle(tmp_path/'furs')
    (tmp_path/'log.sqlite').write_text('this is no database')
    (tmp_path/'brown.png').write_bytes(image_bytes(furs['brown'], format='PNG'))
    with serve_app(bundle, timeout=180, log=tmp_path/'log.sqlite') as url, browser.new_page() as tab:
        here = Place(tab, tmp_path, url)
        said = tab.locator('.bq-trouble')
        assert said.inner_text() == ''
        for _ in range(2):
            here.choose(tmp_path/'brown.png')
            time.sleep(1)  # the row is written beside the answer
        assert here.answers() == {'brown.png': 'brown'} and said.inner_text().startswith('The log cannot be written')
        (tmp_path/'log.sqlite').unlink()
        end = time.monotonic() + 120
        while said.inner_text():
            assert time.monotonic() < end
            here.choose(tmp_path/'brown.png')
            time.sleep(1)

def test_keyboard_alone(place, files):
    tab = place.tab
    focus(place.button)
    with tab.expect_file_chooser() as chooser: tab.keyboard.press('Enter')
    chooser.value.set_files(str(files/'brown.jpg'))
    place.wait(1)
    assert tab.evaluate('document.activeElement.textContent') == 'Choose images', 'the focus has gone'
    for _ in range(4):
        tab.keyboard.press('Tab')
        if tab.evaluate("document.activeElement.getAttribute('aria-label')") == 'Wrong': break
    assert tab.evaluate("document.activeElement.matches(':focus-visible')") and tab.evaluate('getComputedStyle(document.activeElement).outlineStyle') == 'solid'
    tab.keyboard.press('Space')
    place.cards.get_by_text('What would be right?').wait_for()
    tab.keyboard.press('Tab')
    tab.keyboard.press('ArrowDown')
    place.cards.get_by_text('Thank you.', exact=True).wait_for()
    assert Feedback(place.folder/'feedback.sqlite').rows()[-1].correct == 'black'
    take = tab.get_by_role('button', name='Take a photo')
    focus(take)
    tab.keyboard.press('Enter')
    tab.get_by_role('dialog', name='Camera').wait_for()
    tab.keyboard.press('Escape')
    tab.get_by_role('dialog', name='Camera').wait_for(state='hidden')
    tab.wait_for_function("document.activeElement.textContent == 'Take a photo'")  # a dialog says that it has closed a moment after it vanishes

def test_told_to_screen_readers(page, files):
    "A heading, names for all controls, and a status that is read aloud"
    page.choose(files/'doubt.png')
    assert page.tab.get_by_role('status').first.inner_text().startswith('doubt.png: ask a person. The model would rather not decide: it could be')
    page.choose(files/'brown.jpg')
    words = page.tab.get_by_role('status').first.inner_text()
    assert words.startswith('brown.jpg: brown, ') and words.endswith('%.')
    assert page.tab.get_by_role('heading', level=1).inner_text() == 'black, brown or white?'
    page.tab.get_by_role('article', name='brown.jpg').get_by_role('img', name='brown.jpg').wait_for()
    page.tab.get_by_role('group', name='Is this right?').wait_for()
    assert page.tab.get_by_role('heading', level=2).all_inner_texts() == ['brown.jpg']
    unnamed = "found => found.filter(e => !e.hidden && !e.getAttribute('aria-hidden') && !(e.getAttribute('aria-label') || e.textContent.trim())).length"
    assert page.tab.eval_on_selector_all('.bearcls-classify :is(button, input, select, img, canvas, video)', unnamed) == 0
    page.choose(files/'text.jpg')
    assert 'text.jpg cannot be looked at' in page.tab.get_by_role('status').first.inner_text()

def test_themes_and_sizes(page, files):
    "Text can be read in light and dark colours, nothing is wider than a telephone"
    page.choose(files/'doubt.png', files/'brown.jpg', files/'text.jpg', files/'<img src=x onerror=alert(1)>.png')
    page.tab.get_by_role('button', name='Wrong').first.click()
    page.tab.get_by_text('What would be right?').wait_for()
    check_contrasts(page.tab, 'bearcls-classify', 30)
    scheme = page.tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'")
    assert page.tab.locator('.bearcls-classify').get_attribute('data-theme') == scheme
    assert page.tab.evaluate('document.documentElement.scrollWidth <= window.innerWidth'), 'the page is wider than the screen'
    assert page.tab.evaluate("[...document.querySelectorAll('*')].every(e => e.scrollWidth <= window.innerWidth || getComputedStyle(e).overflowX === 'visible')")
    snap(page.tab, f'app-{scheme}')

def test_axe(page, files):
    "BEARCLS_AXE names axe.min.js of axe-core, which is not part of the project"
    if not os.environ.get('BEARCLS_AXE'): pytest.skip('BEARCLS_AXE names no axe.min.js')
    page.tab.add_script_tag(content=Path(os.environ['BEARCLS_AXE']).read_text(encoding='utf-8'))
    for names in ([], ['brown.jpg'], ['doubt.png', 'text.jpg', 'white.png']):
        if names: page.choose(*[files/name for name in names])
        found = page.tab.evaluate("axe.run('.bearcls-classify')")['violations']
        assert not found, [(v['id'], v['help'], [n['html'] for n in v['nodes']][:3]) for v in found]

@pytest.mark.parametrize('front', fronts)
def test_theme_of_jupyter(browser, lab, files, front):
    "A dark notebook on a computer that prefers light, and a window as narrow as a phone"
    setting(lab[0], 'themes', dict(theme='JupyterLab Dark'))
    with browser.new_page(viewport=dict(width=1000, height=800), color_scheme='light') as tab:
        place = Place(tab, *lab, front)
        place.choose(files/'brown.jpg')
        tab.locator('.bearcls-classify[data-theme=dark]').wait_for()
        check_contrasts(tab, 'bearcls-classify', 0)
        snap(tab, f'app-{front}')
    setting(lab[0], 'themes', dict(theme='JupyterLab Light'))

@pytest.mark.parametrize('front', fronts)
def test_no_key_reaches_the_notebook(browser, lab, files, front):
    "A letter chooses the label that begins with it, and D twice deletes no cell; Ctrl+S saves the notebook all the same"
    with browser.new_page(viewport=dict(width=1200, height=900)) as tab:
        place, notebook = Place(tab, *lab, front), lab[0]/'app.ipynb'
        place.choose(files/'brown.jpg')
        place.cards.get_by_role('button', name='Wrong').click()
        cells = lambda: tab.eval_on_selector_all('.jp-Notebook .jp-Cell', 'cells => cells.map(c => c.className.match(/jp-(Code|Markdown|Raw)Cell/)[0] + c.classList.contains("jp-mod-selected"))')
        before, choice = cells(), place.cards.get_by_label('What would be right')
        for control in (place.button, place.cards.get_by_role('button', name='Right')):
            focus(control)
            for key in [*'abcfhijklmopqrtuvxyz0123456789', *'dd', *'ii', 'ArrowDown', 'ArrowUp']: tab.keyboard.press(key)
        focus(choice)
        tab.keyboard.press('w')
        assert choice.input_value() == 'white', 'the letter did not reach the list'
        for key in ('d', 'd', 'x', 'm', 'ArrowUp'): tab.keyboard.press(key)
        assert cells() == before, 'a key reached the notebook'
        written = notebook.stat().st_mtime_ns
        tab.keyboard.press('Control+s')
        wait_until(lambda: notebook.stat().st_mtime_ns > written, 'Ctrl+S does not save the notebook')

def snap(tab, name):
    "Keep an image of the page in the folder that BEARCLS_IMAGES names, if it names one"
    if os.environ.get('BEARCLS_IMAGES'): tab.screenshot(path=f'{os.environ["BEARCLS_IMAGES"]}/{name}.png')

# ---------------------------------------------------------------- kernels

@pytest.fixture
def hasty(tmp_path, monkeypatch):
    "A server that looks for idle kernels every second, and lets them idle for ten"
    with small_server(make_bundle(tmp_path/'furs'), monkeypatch, cull_interval=1, cull_idle_timeout=10) as (url, ours): yield tmp_path, url, ours

def test_kernels_come_and_go(browser, hasty, files):
    "One waits for a visitor longer than an idle one may live, an open page keeps its own, and a closed page's is gone, however it was closed"
    folder, url, ours = hasty
    first, = wait_until(ours, 'no kernel waits for a visitor').values()
    time.sleep(15)
    assert list(ours().values()) == [first], 'the kernel that waits was ended'
    with browser.new_page() as tab:
        place = Place(tab, folder, url)
        assert place.kernel == first, 'the page does not have the kernel that waited'
        place.choose(files/'brown.jpg')
        second, = wait_until(lambda: set(ours().values()) - {first}, 'no other kernel waits for the next visitor')
        time.sleep(15)
        assert set(ours().values()) == {first, second}, 'the kernel of an open page was ended, or that of nobody'
        place.choose(files/'white.png')
        assert place.answers() == {'white.png': 'white'}
        tab.close(run_before_unload=False)  # no goodbye
    wait_until(lambda: list(ours().values()) == [second], 'the kernel of a closed page lives on')

def test_goodbye(browser, bundle, monkeypatch):
    "A page that is left in the usual way ends its own kernel; idle ones are not looked for here within the hour"
    with small_server(bundle, monkeypatch, cull_interval=3600) as (url, ours), browser.new_page() as tab:
        place = Place(tab, bundle.parent, url)
        assert place.kernel in ours().values()
        tab.goto('about:blank')
        wait_until(lambda: place.kernel not in ours().values(), 'the kernel of the page lives on')
        assert not place.errors

def test_lost_kernel(browser, hasty, files):
    "The card says so; nothing old stands beside the new image"
    psutil = pytest.importorskip('psutil')
    folder, url, ours = hasty
    with browser.new_page() as tab:
        tab.clock.install()
        place = Place(tab, folder, url)
        place.choose(files/'white.png')
        for pid in ours(): psutil.Process(pid).kill()
        place.choose(files/'brown.jpg', wait=False)
        def lost():
            tab.clock.fast_forward(40_000)  # again and again: the first may come before the question has left
            return 'the connection to the server is lost, or it is busy' in place.cards.inner_text()
        wait_until(lost, 'nobody says that the connection is lost')
        assert place.cards.count() == 1 and 'white' not in place.cards.inner_text()

def test_files_of_the_server(voila):
    "Nothing of the folder is given away, and errors have no traceback"
    import urllib.error, urllib.request
    for path in ('voila/files/app.ipynb', 'voila/files/server.log', 'voila/files/settings/voila.py', 'voila/files/../furs/model.onnx', 'api/kernels', 'api/contents'):
        try: content = urllib.request.urlopen(voila[1] + path, timeout=60).read()
        except urllib.error.HTTPError as e: assert e.code in (403, 404) and b'Traceback' not in e.read()
        else: raise AssertionError(f'{path} was given: {content[:80]}')

# ---------------------------------------------------------------- images of it

@pytest.mark.skipif('BEARCLS_IMAGES' not in os.environ, reason='BEARCLS_IMAGES names no folder for images of the page')
def test_images_for_the_site(browser, tmp_path):
    "BEARCLS_IMAGES=nbs/images pytest tests/test_app_browser.py -k site draws the site's app.png and app-phone.png anew, with drawn bears"
    from bearcls.sample.bears import draw_bears
    from bearcls.sample.strangers import draw_strangers
    folder = Path(os.environ['BEARCLS_IMAGES'])
    bundle = os.environ.get('BEARCLS_BUNDLE') or pytest.skip('BEARCLS_BUNDLE names no bundle of bears')
    bears = draw_bears(tmp_path/'bears', n_per_label=4, seed=8, faults=False)
    chosen = [sorted((bears/label).iterdir())[1] for label in ('grizzly', 'teddy')]
    draw_strangers(7)[6][1].save(tmp_path/'holiday.png')  # a house
    (tmp_path/'letter.jpg').write_text('Dear bear', encoding='utf-8')
    with serve_app(bundle, feedback=tmp_path/'feedback.sqlite') as url:
        for name, scheme, width, height in (('app', 'light', 1000, 1310), ('app-phone', 'dark', 390, 780)):
            with browser.new_page(viewport=dict(width=width, height=height), color_scheme=scheme) as tab:
                place = Place(tab, tmp_path, url)
                place.choose(*([*chosen, tmp_path/'holiday.png', tmp_path/'letter.jpg'] if name == 'app' else chosen[:1]))
                if name == 'app-phone':
                    tab.get_by_role('button', name='Wrong').click()
                    tab.get_by_text('What would be right?').wait_for()
                place.button.evaluate('b => { b.scrollIntoView({block: "end"}); document.activeElement.blur(); }')
                tab.evaluate("document.querySelector('#rendered_cells').scrollTo(0, 0)")
                tab.screenshot(path=folder/f'{name}.png')
                with Image.open(folder/f'{name}.png') as image: image.convert('RGB').quantize(128, kmeans=2).save(folder/f'{name}.png', optimize=True)
                assert (folder/f'{name}.png').stat().st_size < 150_000
