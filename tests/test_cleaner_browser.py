"The cleaner in JupyterLab, Notebook 7 and Voilà, driven by mouse and by keyboard alone, and galleries there, in a real browser"
import contextlib, hashlib, os
import pytest

pytest.importorskip('anywidget', reason='anywidget is not installed')
from bearcls.clean.moves import apply_plan
from bearcls.clean.plans import Change, plan_changes
from bearcls.sample.bears import draw_bears
from front_ends import (await_output, check_contrasts, check_narrow, draw_for_site, fronts, idle, image_bytes, in_both_themes, jupyter, open_notebook, paint,
    run_cells, voila_page, wait_until, write_notebook)
from warm_kernels import kernel_path

predictions = '''
"Made-up predictions: the model contradicts the label of five images and agrees with all others"
import numpy as np
from pathlib import Path
from bearcls.folders import image_files
from bearcls.interpret.evaluate import tabulate
path = Path('bears')
files, labels = image_files(path), ['black', 'grizzly', 'teddy']
targets = np.array([labels.index(f.parent.name) for f in files])
p = np.random.default_rng(1).dirichlet([1, 1, 1], len(files))*.3
p[np.arange(len(files)), targets] += .7
for k in (2, 15, 20, 41, 50): p[k] = np.roll(p[k], 1)
seen = tabulate(files, ['valid' if k % 4 == 0 else 'train' for k in range(len(files))], p, targets, labels, np.eye(3)[p.argmax(1)] + .1)
'''
late = '''
import time
from bearcls.clean.cleaning import Cleaning
from bearcls.clean.grid import CleanerWidget, Query
def wait():
    while not Path('go').exists(): time.sleep(.05)
    return seen
late = CleanerWidget(Cleaning(path), 4, Query(label='black'))
late.predict(wait)
'''
galleries = '''
from IPython.display import display
report, files = check_images(path), image_files(path)
adjusted = report.adjust(min_similarity=.9, min_sharpness=1e9)  # so that there is something to see
for shown in (gallery(files[:20]), seen, show_top_losses(seen), show_confusion(seen), show_issues(find_issues(seen)), show_candidates(cleaning_candidates(seen, report)), report, adjusted.show(),
    plan_changes(path, [Change('/'.join(files[0].parts[-2:]), 'delete')]), Cleaning(path, seen).show(), show_augmentations(files[0], n=3, size=80), compare_resizes(files[0], size=80),
    html_table([dict(file='a'*300, words='some words '*30)]), Prediction('black', .7, dict(black=.7, grizzly=.2, teddy=.1))): display(shown)
'''
notebooks = dict(
    clean=['from predictions import path, seen\nfrom bearcls.clean.widget import cleaner', 'cleaner(path, seen=seen)'],
    late=['from predictions import Path, path, seen' + late, 'late'],  # four images on a page; predictions come with the file `go`
    galleries=['from predictions import path, seen\nfrom bearcls.all import *\nfrom bearcls.clean.plans import Change, plan_changes\nfrom bearcls.interpret.label_issues import find_issues', galleries],
)

# ---------------------------------------------------------------- two servers

def prepare(folder):
    "A set of drawn bears, predictions, and notebooks with the cleaner"
    draw_bears(folder/'bears', n_per_label=20, seed=3, faults=False)
    (folder/'predictions.py').write_text(predictions, encoding='utf-8')
    for name, sources in notebooks.items(): write_notebook(folder, name, *sources)

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lab')
    prepare(folder)
    with jupyter(folder, JUPYTER_PATH=kernel_path()) as url: yield folder, url

@pytest.fixture(scope='module')
def voila(tmp_path_factory):
    folder = tmp_path_factory.mktemp('voila')
    prepare(folder)
    with voila_page(folder, 'clean', JUPYTER_PATH=kernel_path()) as url: yield folder, url

# ---------------------------------------------------------------- a page with the cleaner

def open_lab(page, folder, url, theme, front='lab'):
    open_notebook(page, folder, url, front, 'clean', theme)
    page.locator('.jp-Notebook .jp-Cell').nth(1).wait_for(timeout=120_000)
    run_both(page)

def run_both(page):
    "Run both cells, and wait for the images"
    idle(page)
    run_cells(page, 2)
    shown(page)
    idle(page)

def shown(page):
    "Wait until every image of the page is there, and what the model says"
    await_output(page, '.bc-card')
    page.wait_for_function("!document.querySelector('.bc-status').textContent.includes('on their way') && document.querySelector('.bc-words').textContent.includes('model:')", timeout=60_000)
    page.wait_for_function("(found => found.length && found.every(i => i.complete && i.naturalWidth))([...document.querySelectorAll('.bc-card img')])", timeout=60_000)

def files(page): return page.eval_on_selector_all('.bc-card', 'cards => cards.map(c => c.dataset.file)')

def marks(page):
    "Marks on the page, by file, as a reader sees them"
    found = page.eval_on_selector_all('.bc-card', "cards => cards.map(c => [c.dataset.file, c.querySelector('.bc-badge').textContent])")
    return {file: words for file, words in found if words}

def status(page): return page.locator('.bc-status')

def snapshot(folder):
    "Name, digest and time of every file in the image folder"
    found = {}
    for f in sorted((folder/'bears').rglob('*')):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):  # a folder, or a file that is being moved just now: who waits looks again
            found[f.relative_to(folder).as_posix()] = hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns
    return found

class Mouse:
    "Everything by mouse"
    def __init__(self, page): self.page = page
    def card(self, file): return self.page.locator(f'.bc-card[data-file="{file}"]')
    def begin(self): pass
    def delete(self, first, second):
        self.card(first).get_by_role('button', name='Delete').click()
        self.card(second).locator('.bc-image').click()
        self.page.locator('.bc-bar').get_by_role('button', name='Delete', exact=True).click()
    def relabel(self, file, label): self.card(file).get_by_role('combobox').select_option(label)
    def choose(self, name, value): self.page.locator(f'select[name={name}]').select_option(value)
    def press(self, name): self.page.get_by_role('button', name=name, exact=True).click()

class Keyboard:
    "Everything by keys, from the first filter on"
    def __init__(self, page): self.page = page
    def begin(self): self.page.locator('.bc-filters select').first.focus()
    def tab_to(self, selector, key='Tab'):
        for _ in range(60):
            if self.page.evaluate('s => document.activeElement.matches(s)', selector): return
            self.page.keyboard.press(key)
        raise AssertionError(f'{selector} cannot be reached with {key}')
    def go(self, file):
        self.tab_to('.bc-face')
        self.page.keyboard.press('Home')
        for _ in range(files(self.page).index(file)): self.page.keyboard.press('ArrowRight')
    def delete(self, first, second):
        for file in (first, second): self.go(file), self.page.keyboard.press('d')
    def relabel(self, file, label):
        self.go(file)
        self.page.keyboard.press(str(1 + ['black', 'grizzly', 'teddy'].index(label)))
    def choose(self, name, value):
        self.tab_to(f'select[name={name}]', 'Shift+Tab')
        self.page.keyboard.press(value[0] if value else 'Home')  # a letter chooses the option that begins with it
    def press(self, name):
        word = {'Review and apply…': '.bc-main', 'Apply': '.bc-dialog .bc-main', 'Undo last apply': '.bc-main + .bc-button'}[name]
        self.tab_to(word, 'Tab' if name == 'Apply' else 'Shift+Tab')
        self.page.keyboard.press('Enter')

def walk(page, folder, hand, reload):
    "The whole way: mark, switch, reload, apply, undo"
    before = snapshot(folder)
    hand.begin()
    first, second, third = files(page)[:3]
    new = next(label for label in ('teddy', 'black') if not third.startswith(label))
    hand.delete(first, second)
    hand.relabel(third, new)
    expected = {first: '✕ Delete', second: '✕ Delete', third: f'Relabel to → {new}'}
    assert marks(page) == expected
    status(page).get_by_text('2 to delete, 1 to relabel, 0 kept, 57 undecided.').wait_for()

    label = first.split('/')[0]
    for name, value, wrong in (('label', label, lambda f: not f.startswith(label)), ('split', 'valid', lambda f: False)):
        hand.choose(name, value)
        page.wait_for_function('([l, n]) => document.querySelector(`select[name=${n}]`).value == l', arg=[value, name])
        wait_until(lambda: files(page) and not any(map(wrong, files(page))), f'the filter {name} shows other images')
        shown(page)
    wait_until(lambda: 0 < len(files(page)) < 20, 'the filter split shows as many as before')
    shown(page)
    for name in ('split', 'label'): hand.choose(name, '')
    wait_until(lambda: len(files(page)) == 30, 'the whole set is not back')
    assert marks(page) == expected, 'a switch lost marks'

    reload()
    shown(page)
    assert marks(page) == expected, 'the reload lost marks'
    assert snapshot(folder) == before, 'something happened before apply'

    hand.begin()
    hand.press('Review and apply…')
    dialog = page.get_by_role('dialog')
    dialog.get_by_text('2 to the quarantine and 1 to another label').wait_for()
    assert all(file in dialog.inner_text() for file in expected)
    hand.press('Apply')
    wait_until(lambda: len(snapshot(folder)) == len(before) - 2, 'apply moved nothing')
    status(page).get_by_text('0 to delete, 0 to relabel').wait_for()
    after = snapshot(folder)
    moved = 'bears/' + new + '/' + third.split('/')[1]
    assert after[moved] == before[f'bears/{third}'] and not {f'bears/{f}' for f in (first, second, third)} & after.keys()
    wait_until(lambda: not set(expected) & set(files(page)), 'moved images are still shown')
    assert page.evaluate("document.activeElement.matches('.bc-main')"), 'the focus has gone from the button that cannot be pressed now'

    hand.begin()
    hand.press('Undo last apply')
    wait_until(lambda: snapshot(folder) == before, 'undo did not bring back every byte')
    wait_until(lambda: set(expected) <= set(files(page)), 'images that came back are not shown')

@pytest.fixture(autouse=True)
def unmarked(request):
    "Take the marks of a test off for the next one, however it ended"
    yield
    for name in {'lab', 'voila'} & set(request.fixturenames): (request.getfixturevalue(name)[0]/'.cleaning'/'bears'/'marks.json').unlink(missing_ok=True)

@pytest.mark.parametrize('hand, theme', [(Mouse, 'JupyterLab Light'), (Keyboard, 'JupyterLab Dark')], ids=['mouse', 'keyboard'])
@pytest.mark.parametrize('front', fronts)
def test_in_jupyter(browser, lab, front, hand, theme):
    folder, url = lab
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        open_lab(page, folder, url, theme, front)
        assert page.locator('.bearcls-cleaner').get_attribute('data-theme') == theme.split()[1].lower()
        image_bytes(page, f'cleaner-{front}-{hand.__name__.lower()}')
        n_cells = page.locator('.jp-Notebook .jp-Cell').count()
        def reload():
            page.locator('.bc-face').first.focus()
            written = (folder/'clean.ipynb').stat().st_mtime_ns
            for key in ('ArrowDown', 'x', 'x', 'd', 'd', 'Control+s'): page.keyboard.press(key)  # In Jupyter X cuts a cell and D, D deletes one; only saving is meant for it
            wait_until(lambda: (folder/'clean.ipynb').stat().st_mtime_ns > written, 'Ctrl+S does not save')
            assert page.locator('.jp-Notebook .jp-Cell').count() == n_cells, 'a key of the cleaner reached the notebook'
            page.reload()
        walk(page, folder, hand(page), reload)

strange = 'abcdfhijklmopqrtuvwxyz0123456789' # N and S, E, G are left out: nothing is bound to them

@pytest.mark.parametrize('front', fronts)
def test_no_key_reaches_the_notebook(browser, lab, front):
    "Whatever has the focus in the cleaner: letters, digits and arrows are bound to deeds of the notebook, D and 0 and I in pairs"
    folder, url = lab
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        open_lab(page, folder, url, 'JupyterLab Light', front)
        cells = lambda: page.eval_on_selector_all('.jp-Notebook .jp-Cell', 'cells => cells.map(c => c.className.match(/jp-(Code|Markdown|Raw)Cell/)[0] + c.classList.contains("jp-mod-selected"))')
        before = cells()
        for selector in ('.bc-face', '.bc-filters select', '.bc-bar button:not(:disabled)', '.bc-paging button:not(:disabled)'):
            place = page.locator(selector).last
            for key in [*strange, *'dd', *'00', *'ii', 'ArrowDown', 'ArrowUp', 'Shift+ArrowDown', 'Delete']:
                if key == 'i' and selector == '.bc-face': continue
                place.focus()
                page.keyboard.press(key)
            assert cells() == before, f'a key on {selector} reached the notebook'
            shown(page)

@pytest.mark.parametrize('front', fronts)
def test_a_kernel_that_restarts(browser, lab, front):
    "The page says that nobody answers any more; run again, the marks are there"
    folder, url = lab
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        open_lab(page, folder, url, 'JupyterLab Light', front)
        first, second = files(page)[:2]
        page.locator('.bc-face').first.click()
        page.keyboard.press('d')
        status(page).get_by_text('1 image to be deleted').wait_for()
        page.locator('.jp-NotebookPanel-toolbar [data-command="notebook:restart-kernel"]').first.click()
        page.locator('.jp-Dialog .jp-mod-accept').click()
        page.locator('.jp-Dialog').wait_for(state='detached')
        idle(page)
        if page.locator(f'.bc-card[data-file="{second}"]').count():  # JupyterLab may also take the widget away
            page.locator(f'.bc-card[data-file="{second}"] .bc-image').click()
            page.keyboard.press('d')
            page.locator('.bc-trouble').get_by_text('Python has not answered').wait_for()
        run_both(page)
        wait_until(lambda: marks(page) == {first: '✕ Delete'}, 'the restart lost a mark, or kept one that was never saved')

@pytest.mark.parametrize('hand', [Mouse, Keyboard], ids=['mouse', 'keyboard'])
def test_in_voila(browser, voila, hand):
    "A reload brings a new kernel here, so that marks come from the disk"
    folder, url = voila
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        walk(page, folder, hand(page), lambda: page.reload(timeout=120_000))

# ---------------------------------------------------------------- galleries and tables

def look_at_galleries(page, theme, name):
    "Images are there, words can be read, nothing is cut off or pushes the page wider"
    trouble = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    page.locator('.jp-RenderedHTMLCommon').nth(13).or_(trouble.first).first.wait_for(timeout=120_000)
    assert not trouble.count(), trouble.first.inner_text()
    page.wait_for_function("(found => found.length > 80 && found.every(i => i.complete && i.naturalWidth))([...document.querySelectorAll('.jp-RenderedHTMLCommon img')])", timeout=60_000)
    check_contrasts(page, 'jp-RenderedHTMLCommon', 150)
    wide = page.evaluate('''() => [...document.querySelectorAll('.jp-RenderedHTMLCommon')].filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'auto')
        .map(e => [e.scrollWidth, e.clientWidth, e.textContent.trim().slice(0, 60)])''')
    assert not wide, wide
    cut = page.evaluate('''() => [...document.querySelectorAll('.jp-RenderedHTMLCommon figcaption, .jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th')]
        .filter(e => e.checkVisibility() && (e.scrollHeight > e.clientHeight + 2 || e.scrollWidth > e.clientWidth + 2)).map(e => e.textContent.trim().slice(0, 60))''')
    assert not cut, cut
    for k, output in enumerate(page.locator('.jp-RenderedHTMLCommon').all()):
        if os.environ.get('BEARCLS_IMAGES'): output.screenshot(path=f'{os.environ["BEARCLS_IMAGES"]}/gallery-{name}-{k}.png')

@pytest.mark.parametrize('front, theme', [('lab', 'Light'), ('notebook', 'Light'), ('notebook', 'Dark'), ('voila', 'Light')], ids=lambda v: v.lower())
def test_galleries(request, browser, front, theme):
    folder, url = request.getfixturevalue('voila' if front == 'voila' else 'lab')
    with browser.new_page(viewport=dict(width=1100, height=900)) as page:
        if front == 'voila': page.goto(url.replace('clean', 'galleries'), timeout=120_000)
        else:
            open_notebook(page, folder, url, front, 'galleries', f'JupyterLab {theme}')
            run_cells(page, 2)
        look_at_galleries(page, theme, f'{front}-{theme}'.lower())

# ---------------------------------------------------------------- what it looks like, and who can use it

@pytest.fixture
def board(browser, voila):
    "The cleaner in Voilà, with no marks"
    folder, url = voila
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        page.bytes = 0
        def count(frame): page.bytes += len(frame)
        page.on('websocket', lambda socket: socket.on('framereceived', count))
        page.goto(url, timeout=120_000)
        shown(page)
        yield page

def test_themes_and_sizes(board):
    "Text can be read on light and on dark pages, and nothing is cut off on a telephone"
    board.locator('.bc-face').first.click()
    for key in ('d', 'ArrowRight', '2', 'ArrowRight', 'k', 'ArrowRight', 'Shift+ArrowRight'): board.keyboard.press(key)
    for theme in in_both_themes(board, 'bearcls-cleaner'):
        image_bytes(board, f'cleaner-{theme}')
        check_contrasts(board, least=100)
    paint(board, 'transparent')
    for wish in ('dark', 'light'):  # a page without a background of its own
        board.emulate_media(color_scheme=wish)
        board.locator(f'.bearcls-cleaner[data-theme={wish}]').wait_for()
    check_narrow(board, 360)
    image_bytes(board, 'cleaner-360')
    for button in board.locator('.bc-card').first.get_by_role('button').all(): assert button.is_visible()

@pytest.mark.skipif('BEARCLS_IMAGES' not in os.environ, reason='BEARCLS_IMAGES names no folder for images of the page')
def test_image_for_the_site(board):
    "BEARCLS_IMAGES=nbs/images pytest tests/test_cleaner_browser.py -k site draws the site's cleaner.png anew"
    board.set_viewport_size(dict(width=1000, height=690))
    board.locator('.bc-face').first.click()
    for key in ('k', 'ArrowRight', '2', 'ArrowRight', 'd', 'ArrowRight', 'Shift+ArrowRight'): board.keyboard.press(key)
    assert draw_for_site(board, 'cleaner.png').stat().st_size < 200_000

def test_light_on_the_wire(board):
    "Thirty images, with the widget's own code and all that Voilà sends beside"
    assert len(files(board)) == 30 and 20_000 < board.bytes <= 200_000

def test_several_at_once_and_undo(board):
    first, second, third, fourth, *_ = files(board)
    face = lambda file: board.locator(f'.bc-card[data-file="{file}"] .bc-image')
    face(first).click()
    face(third).click(modifiers=['Shift'])
    face(second).click(modifiers=['ControlOrMeta'])
    board.keyboard.press('d')
    assert set(marks(board)) == {first, third}
    face(fourth).click()
    board.keyboard.press('Control+a')
    board.keyboard.press('k')
    status(board).get_by_text('30 kept').wait_for()
    board.keyboard.press('u')
    wait_until(lambda: marks(board) == {first: '✕ Delete', third: '✕ Delete'}, 'undo did not bring back what was before')
    board.keyboard.press('u')
    wait_until(lambda: not marks(board), 'a mark is left')

def test_nothing_is_exchanged_under_the_hand(browser, voila):
    "Predictions wait for who is at work on a page; a key means the image that the large window shows"
    folder, url = voila
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        page.goto(url.replace('clean', 'late'), timeout=120_000)
        page.locator('.bc-card').first.wait_for(timeout=120_000)
        first, second, third, _ = before = files(page)
        title = page.locator('.bc-dialog h2')
        page.locator('.bc-image').nth(0).click()
        page.locator('.bc-image').nth(2).click(modifiers=['Shift'])
        page.keyboard.press('Enter')
        title.get_by_text(third).wait_for()
        (folder/'go').touch()
        status(page).get_by_text('Predictions are there').wait_for()
        status(page).get_by_text('stays as it is').wait_for()
        assert files(page) == before and title.inner_text() == third, 'the image was exchanged'
        page.keyboard.press('d')
        assert marks(page) == {third: '✕ Delete'}, 'a key meant images behind the window'
        page.keyboard.press('Escape')
        page.locator('.bc-dialog').wait_for(state='hidden')
        for _ in range(2): page.keyboard.down('k')  # the second is what a key held down sends
        page.keyboard.up('k')
        wait_until(lambda: marks(page) == dict.fromkeys((first, second, third), '✓ Keep'), 'the selection was dropped, or a held key pressed again')  # the answer to d may come after the k
        page.keyboard.press('Escape')
        wait_until(lambda: files(page) != before, 'Escape does not show the new order')
        shown(page)

        page.locator('.bc-face').first.focus()
        kept = marks(page)
        page.keyboard.press('Control+a')
        page.keyboard.press('a')
        status(page).get_by_text('marked as suggested').wait_for()
        assert sum('Relabel' in words for words in marks(page).values()) == 2
        page.keyboard.press('u')
        wait_until(lambda: marks(page) == kept, 'one undo does not take back what one press accepted')

        Mouse(page).choose('show', 'undecided')
        page.locator('.bc-paging').get_by_text('17 images, page 1 of 5').wait_for()
        for left in (13, 9, 5, 1):
            page.locator('.bc-face').first.focus()
            page.keyboard.press('Control+a')
            page.keyboard.press('k')
            page.locator('.bc-paging').get_by_role('button', name='Next').press('Enter')
            page.locator('.bc-paging').get_by_text(f'{left} image').wait_for()
        assert len(files(page)) == 1 and page.evaluate('document.activeElement.textContent') == 'Next', 'images were skipped, or the focus went'

def test_told_what_others_moved(board, voila):
    "Another program has moved an image under a new label; the next answer tells, and the label may go again"
    path, (first, second, *_) = voila[0]/'bears', files(board)
    apply_plan(plan_changes(path, [Change(first, 'relabel', 'polar')]))
    board.locator(f'.bc-card[data-file="{second}"] .bc-image').click()
    board.keyboard.press('k')
    wait_until(lambda: first not in files(board), 'an image that has moved is still shown')
    assert marks(board) == {second: '✓ Keep'} and board.locator('.bc-chosen').inner_text() == '1 selected'
    Mouse(board).choose('label', 'polar')
    wait_until(lambda: [f.split('/')[0] for f in files(board)] == ['polar'], 'the new label cannot be chosen')
    Mouse(board).press('Undo last apply')
    wait_until(lambda: len(files(board)) == 30 and first in files(board), 'the label that has gone locks the cleaner')
    assert board.locator('select[name=label]').input_value() == ''

def test_told_to_screen_readers(board):
    "A grid with one tab stop, a name for every control, words for every image, and a status that is read aloud"
    grid = board.get_by_role('grid', name='Images')
    assert grid.get_attribute('aria-rowcount') == '60' and grid.get_by_role('row').count() == 30
    assert board.locator('.bc-grid [tabindex="0"]').count() == 1
    first = files(board)[0]
    name, label = first.split('/')[1], first.split('/')[0]
    cell = grid.get_by_role('row').first.get_by_role('gridcell').first
    assert f'{name}, filed as {label}' in cell.aria_snapshot() and 'model: ' in cell.aria_snapshot() and 'loss' in cell.aria_snapshot()
    for button in (f'Keep {name}', f'Delete {name}'): assert grid.get_by_role('button', name=button).get_attribute('aria-pressed') == 'false'
    assert board.eval_on_selector_all('.bearcls-cleaner select, .bearcls-cleaner input', "found => found.every(e => e.labels.length || e.getAttribute('aria-label'))")
    board.locator('.bc-face').first.focus()
    assert board.locator('.bc-card').first.evaluate('e => getComputedStyle(e).outlineStyle') == 'solid', 'the focus cannot be seen'
    board.keyboard.press('?')
    assert 'undo the last mark' in board.get_by_role('dialog', name='Keyboard').inner_text()
    board.keyboard.press('Escape')
    board.keyboard.press('Enter')
    board.get_by_role('dialog', name=first).get_by_role('img', name=first).wait_for()
    board.keyboard.press('ArrowRight')
    board.keyboard.press('d')
    board.keyboard.press('Escape')
    assert set(marks(board)) == {files(board)[1]} and board.evaluate('document.activeElement.closest(".bc-card").dataset.file') == files(board)[1]

def test_seen_pages_come_from_memory(board):
    "Switching back asks for no image again, and takes no 0.3 seconds"
    choose = Mouse(board).choose
    choose('label', 'teddy')
    wait_until(lambda: all(f.startswith('teddy') for f in files(board)), 'no teddies')
    shown(board)
    choose('label', '')
    shown(board)
    before = board.bytes
    seconds = board.evaluate("""async () => {
      const select = document.querySelector('select[name=label]'), start = performance.now();
      select.value = 'teddy';
      select.dispatchEvent(new Event('change', {bubbles: true}));
      const images = [...document.querySelectorAll('.bc-card img')];
      await Promise.all(images.map(i => i.decode()));
      await new Promise(requestAnimationFrame);
      return (performance.now() - start)/1000;
    }""")
    assert all(f.startswith('teddy') for f in files(board))
    assert board.bytes - before < 5000, 'pages were sent again'
    print(f'switched in {seconds:.3f} s')
