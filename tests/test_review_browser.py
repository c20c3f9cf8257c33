"The review widget in JupyterLab, Notebook 7 and Voilà, driven by mouse and by keyboard alone, in a real browser"
import json, os
from pathlib import Path
import pytest

pytest.importorskip('anywidget', reason='anywidget is not installed')
pytest.importorskip('sqlalchemy', reason='SQLAlchemy is not installed')
from bearcls.folders import image_files
from bearcls.monitor.log import LogRow, PredictionLog
from bearcls.rollout.queue import ReviewQueue
from bearcls.sample.bears import draw_bears
from test_cleaner_browser import contrasts, front_url, idle, image_bytes, jupyter, paint, serving, setting, wait_until

labels = ['black', 'grizzly', 'teddy']
cell = '''from bearcls.folders import image_files
from bearcls.monitor.log import PredictionLog
from bearcls.rollout.queue import ReviewQueue
from bearcls.rollout.review import ReviewWidget
ReviewWidget(ReviewQueue(PredictionLog('log.sqlite'), twice=0., images='bears'), 'Anna')'''

def write_log(folder):
    "A new log of 24 answers; the fourth of them is one on which two models disagree, and one image is missing"
    for name in folder.glob('log.sqlite*'): name.unlink()
    log = PredictionLog(folder/'log.sqlite')
    rows = []
    for k, file in enumerate(image_files(folder/'bears')):
        label = file.parent.name
        name = file.name if k != 20 else 'gone.jpg'
        for role in ('', 'shadow') if k == 3 else ('',):
            says = 'teddy' if role else label
            rows.append(LogRow(says, .6, dict.fromkeys(labels, .2) | {says: .6}, False, 'not sure enough', confidence=.5 + k/100, name=name, place='gate',
                role=role, pair=f'pair-{k}', answer=f'{k}{role}'))
    log.write(rows)
    return log

def prepare(folder):
    draw_bears(folder/'bears', n_per_label=8, seed=3, faults=False)
    kernel = dict(name='python3', display_name='Python 3', language='python')
    cells = [dict(cell_type='code', execution_count=None, id='cell0', metadata={}, outputs=[], source=cell)]
    (folder/'review.ipynb').write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)), encoding='utf-8')

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lab')
    prepare(folder)
    with jupyter(folder) as url: yield folder, url

@pytest.fixture(scope='module')
def voila(tmp_path_factory):
    pytest.importorskip('voila', reason='Voilà is not installed')
    folder = tmp_path_factory.mktemp('voila')
    prepare(folder)
    with serving(folder, 'voila', '.', '--Voila.ip=127.0.0.1', ready='voila/static/favicon.ico') as url: yield folder, url + 'voila/render/review.ipynb'

def shown(page):
    "Wait until the widget shows its first image"
    trouble = page.locator('[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type="application/vnd.jupyter.error"]')
    page.locator('.br-image img').or_(trouble.first).first.wait_for(timeout=120_000)
    assert not trouble.count(), trouble.first.inner_text()
    page.wait_for_function("(i => i && i.complete && i.naturalWidth)(document.querySelector('.br-image img'))")

def open_lab(page, folder, url, theme, front):
    setting(folder, 'themes', dict(theme=theme))
    page.goto(front_url(url, front, 'review'))
    page.locator('.jp-Notebook .jp-Cell').first.wait_for(timeout=120_000)
    idle(page)
    page.locator('.jp-NotebookPanel .jp-InputArea-editor').first.click()
    page.keyboard.press('Control+Enter')
    shown(page)
    idle(page)

def facts(page): return page.locator('.br-facts').inner_text()

def name(page): return page.locator('.br-name').inner_text()

class Mouse:
    def __init__(self, page): self.page = page
    def begin(self): pass
    def say(self, words): self.page.locator('.br-answers').get_by_role('button', name=words, exact=True).click()

class Keyboard:
    keys = dict(Right='Enter', Other='o', **{'Cannot tell': '?', 'Undo': 'z'})
    def __init__(self, page): self.page = page
    def begin(self):
        self.page.locator('.br-card').focus()
    def say(self, words): self.page.keyboard.press(self.keys.get(words) or str(1 + labels.index(words)))

def said(log): return {look.answer: look.said for look in ReviewQueue(log, days=1e5).looks()}

def walk(page, log, hand, reload):
    "The whole way: disagreement, right, another label, other, cannot tell, undo, a reload, to the end"
    hand.begin()
    assert 'models: black or teddy' in facts(page)  # the disagreement comes first
    assert not page.locator('.br-right').is_visible()
    first = name(page)
    hand.say('black')
    page.wait_for_function("n => document.querySelector('.br-name').textContent !== n", arg=first)
    wait_until(lambda: said(log) == {'3': 'black'}, 'the label was not stored')
    page.get_by_text('Stored: black.').wait_for()
    for words, stored in (('Right', None), ('teddy', 'teddy'), ('Other', 'other'), ('Cannot tell', 'cannot tell')):
        here, label = name(page), facts(page).split('\n')[0].removeprefix('model: ')
        hand.say(words)
        page.wait_for_function("n => document.querySelector('.br-name').textContent !== n", arg=here)
        wait_until(lambda: list(said(log).values())[-1] == (stored or label), f'{words} was not stored')
    before = len(said(log))
    hand.say('Undo')
    page.wait_for_function("n => document.querySelector('.br-name').textContent === n", arg=here)
    wait_until(lambda: len(said(log)) == before - 1, 'undo did not take back')
    assert len({v.who for v in ReviewQueue(log, days=1e5).looks()}) == 1
    reload()
    shown(page)
    assert name(page) == here, 'the reload shows another image'
    hand.begin()
    for k in range(before - 1, 24):
        here = name(page)
        if here == 'gone.jpg': page.get_by_text('No image: the log keeps no thumbnail').wait_for()
        hand.say('Cannot tell' if here == 'gone.jpg' else 'Right')
        if k < 23: page.wait_for_function("n => document.querySelector('.br-name').textContent !== n", arg=here)
    page.get_by_text('Nothing waits to be looked at.').wait_for()
    wait_until(lambda: len(said(log)) == 24, 'not everything was stored')
    page.get_by_role('button', name='Look for more').click()
    page.get_by_text('24 of 50 images today').wait_for()

@pytest.mark.parametrize('front, hand, theme', [('lab', Mouse, 'JupyterLab Light'), ('lab', Keyboard, 'JupyterLab Dark'), ('notebook', Keyboard, 'JupyterLab Light')],
    ids=['lab-mouse', 'lab-keyboard', 'notebook-keyboard'])
def test_in_jupyter(browser, lab, front, hand, theme):
    folder, url = lab
    log = write_log(folder)
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        open_lab(page, folder, url, theme, front)
        assert page.locator('.bearcls-review').get_attribute('data-theme') == theme.split()[1].lower()
        n_cells = page.locator('.jp-Notebook .jp-Cell').count()
        page.locator('.br-card').focus()
        for key in 'xddb00iicv': page.keyboard.press(key)  # X cuts a cell, D, D deletes one, B makes one, 0, 0 restarts the kernel
        assert page.locator('.jp-Notebook .jp-Cell').count() == n_cells and not page.locator('.jp-Dialog').count(), 'a key of the widget reached the notebook'
        def reload():
            page.locator('.jp-NotebookPanel .jp-InputArea-editor').first.click()
            page.keyboard.press('Control+s')
            idle(page)
            page.reload()
            page.locator('.jp-Notebook .jp-Cell').first.wait_for(timeout=120_000)
            idle(page)
            if not page.locator('.br-image img').count():  # a widget comes back only where its state was kept
                page.locator('.jp-NotebookPanel .jp-InputArea-editor').first.click()
                page.keyboard.press('Control+Enter')
        walk(page, log, hand(page), reload)

@pytest.mark.parametrize('hand', [Mouse, Keyboard], ids=['mouse', 'keyboard'])
def test_in_voila(browser, voila, hand):
    folder, url = voila
    log = write_log(folder)
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        walk(page, log, hand(page), lambda: page.reload(timeout=120_000))

def test_quick_fingers(browser, voila):
    "Ten keys faster than Python answers: each is about the image that was on show, and none is lost"
    folder, url = voila
    log = write_log(folder)
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        page.locator('.br-card').focus()
        pressed = {}
        for k in range(4):
            pressed[name(page)] = labels[k % 3]
            page.keyboard.press(str(1 + k % 3))
        wait_until(lambda: len(said(log)) == 4, 'keys were lost')
        columns = next(log.read(['answer', 'name', 'correct']))
        stored = {n: c for n, c in zip(columns['name'], columns['correct']) if c}
        assert stored == pressed

def test_looks_and_sizes(browser, voila):
    "Text can be read on light and on dark pages, and nothing is cut off on a telephone"
    folder, url = voila
    write_log(folder)
    with browser.new_page(viewport=dict(width=900, height=700)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        page.locator('.br-card').focus()
        page.keyboard.press('1')
        page.get_by_text('Stored: black.').wait_for()
        shown(page)
        for theme, colour in (('light', 'white'), ('dark', '#111')):
            paint(page, colour)
            page.locator(f'.bearcls-review[data-theme={theme}]').wait_for()
            found = page.evaluate(contrasts)
            low = [f for f in found if f[0] < 4.5]
            assert not low and len(found) > 12, low
            image_bytes(page, f'review-{theme}')
        page.set_viewport_size(dict(width=360, height=800))
        assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth'), 'the page is wider than the screen'
        image_bytes(page, 'review-360')

@pytest.mark.skipif('BEARCLS_IMAGES' not in os.environ, reason='BEARCLS_IMAGES names no folder for images of the page')
def test_image_for_the_site(browser, voila):
    "BEARCLS_IMAGES=nbs/images pytest tests/test_review_browser.py -k site draws the site's review.png anew"
    from PIL import Image
    folder, url = voila
    write_log(folder)
    with browser.new_page(viewport=dict(width=800, height=700)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        page.locator('.br-card').focus()
        page.keyboard.press('1')
        page.get_by_text('Stored: black.').wait_for()
        shown(page)
        file = Path(os.environ['BEARCLS_IMAGES'])/'review.png'
        page.locator('.bearcls-review').screenshot(path=file)
        with Image.open(file) as image: image.convert('RGB').quantize(256, kmeans=2).save(file, optimize=True)
