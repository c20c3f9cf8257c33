"Five problems without a bear: drawn alike from the same seed, solved from end to end, and a page of the gallery that answers in a browser"
import re, shutil, sys
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from bearcls.core import DataError
from bearcls.deploy.web import WebError, web_runtime
from bearcls.folders import scan_folder
from bearcls.inference.classifier import Classifier
from bearcls.manifest import read_manifest, site_of
from bearcls.sample.bears import NotEmptyError
from bearcls.teach.problems import DrawnProblem, draw_problem, find_problem, image_side, problem_sheet, problems
from notebooks import cells, output_text, root
from test_web import ask, opened, serving

sys.path.insert(0, str(root/'nbs'/'_sphinx'))

names = [*problems]

def pixels(problem, label, **how): return np.asarray(problem.image(label, **how), float)

def test_five_problems_and_no_bear():
    assert len(names) == len({p.question for p in problems.values()}) == 5
    for name, p in problems.items():
        assert p.name == name and len({*p.labels}) == len(p.labels) >= 3 and p.question.endswith('?') and p.who and p.limits
        assert 'bear' not in f'{p.labels} {p.question}'

@pytest.mark.parametrize('name', names)
def test_drawings_repeat(name):
    "By seed, number and source; each of the three makes another image"
    p = problems[name]
    for label in p.labels:
        one = p.image(label, 3, 2)
        assert one.size == (image_side, image_side) and one.mode == 'RGB'
        assert one.tobytes() == p.image(label, 3, 2).tobytes()
        others = [p.image(label, 4, 2), p.image(label, 3, 5), p.image(label, 3, 2, seed=7)]
        assert all(one.tobytes() != o.tobytes() for o in others)

@pytest.mark.parametrize('name', names)
def test_labels_differ(name):
    "A straight line through a few coarse measures beats chance, and no two labels look alike on average"
    p = problems[name]
    drawn = {label: np.stack([pixels(p, label, number=k, source=k) for k in range(24)]) for label in p.labels}
    contrast = {label: np.abs(np.diff(v.mean(-1), axis=1)).mean((1, 2)) for label, v in drawn.items()}
    light = {label: v.mean((1, 2, 3)) for label, v in drawn.items()}
    for a, b in [(a, b) for a in p.labels for b in p.labels if a < b]:
        assert max(abs(m[a].mean() - m[b].mean()) for m in (contrast, light)) > .05, (a, b)
        assert not (drawn[a] == drawn[b]).all()

def test_a_source_keeps_its_look():
    "The corner of an image shows the table, the belt, the paper: more alike within a source than between sources"
    for name in ('leaves', 'parts', 'forms', 'pulses'):
        p = problems[name]
        corner = np.array([[pixels(p, p.labels[0], number=k, source=s)[:9, :9].mean((0, 1)) for k in range(6)] for s in range(8)])
        assert corner.std(1).mean() < corner.mean(1).std(0).mean(), name

def test_a_folder_with_sources(tmp_path):
    path = draw_problem('leaves', tmp_path/'leaves', n_per_label=5, seed=3, sources=[8, 9])
    assert scan_folder(path).counts == dict(healthy=5, mildew=5, rust=5)
    rows = read_manifest(path)
    assert {site_of(r) for r in rows} == {'source-8.example', 'source-9.example'} and {r.license for r in rows} == {'Apache-2.0'}
    assert all((r.width, r.height, r.status) == (image_side, image_side, 'ok') for r in rows)
    again = draw_problem('leaves', tmp_path/'again', n_per_label=5, seed=3, sources=[8, 9])
    for r in rows: assert (path/r.file).read_bytes() == (again/r.file).read_bytes()

def test_clear_errors(tmp_path):
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(DataError, match="`problem` must be one of leaves, parts, forms, skies, pulses; got 'cats'"): find_problem('cats')
    with pytest.raises(DataError, match="`label` must be one of healthy, rust, mildew; got 'green'"): problems['leaves'].image('green')
    for dest in (tmp_path, tmp_path/'notes.txt'):
        with pytest.raises(NotEmptyError, match='must be a new or empty folder'): draw_problem('skies', dest)
    for wrong in (dict(n_per_label=0), dict(sources=[])):
        with pytest.raises(DataError, match='must hold at least one'): draw_problem('skies', tmp_path/'skies', **wrong)
    assert [f.name for f in tmp_path.iterdir()] == ['notes.txt']

def test_sheets_show_every_label():
    for p in problems.values():
        sheet = problem_sheet(p, n_sources=2)
        assert all(f'images of the label {label}' in sheet for label in p.labels) and sheet.count('<img') == len(p.labels)

def test_the_page_says_what_was_measured():
    "Each card of the committed page has an error with its interval, limits, and a place for its links"
    from gallery import add_links
    page = root/'nbs'/'teach'/'08_gallery.ipynb'
    shown = '\n'.join(''.join(o.get('data', {}).get('text/html', '')) for c in cells(page) for o in c.get('outputs', []))
    for name, p in problems.items(): assert f'class="try-{name}"' in shown and p.limits.partition(':')[0] in shown, name
    assert len(re.findall(r'Error on new sources: [\d.]+% \(95% interval [\d.]+% to [\d.]+%\)', shown)) >= 5
    linked = add_links(shown, names)
    assert linked == add_links(linked, names) and all(f'href="gallery/{name}/index.html"' in linked for name in names)
    with pytest.raises(SystemExit, match='no place for the links of skies'): add_links('<p class="try-leaves"></p>', ['leaves', 'skies'])

# ---------------------------------------------------------------- from end to end

def two_colours(label, rng, source):
    image = Image.new('RGB', (image_side, image_side), (200, 30, 30) if label == 'red' else (30, 30, 200))
    noise = rng.integers(-30, 30, (image_side, image_side, 3)) + source.integers(-15, 15)
    return Image.fromarray((np.asarray(image, int) + noise).clip(0, 255).astype(np.uint8))

@pytest.fixture(scope='module')
def solved(tmp_path_factory):
    "The easiest problem of all, so that the training is short"
    from bearcls.teach.gallery import solve_problem
    if shutil.which('npm') is None: pytest.skip('npm is not installed')
    problem = DrawnProblem('colours', ('blue', 'red'), 'Which <colour> & is it?', 'Nobody.', 'Only two.', two_colours, epochs=10)
    return solve_problem(problem, tmp_path_factory.mktemp('gallery')/'colours', n_per_label=40, n_other=20)

def test_solved_from_end_to_end(solved):
    assert solved.error['n'] == 40 and solved.n_images == 80 and solved.error['error'] < .3
    assert {*solved.other.table.file} & {*solved.known.table.file} == set()
    assert solved.report.is_file() and solved.page.single.is_file() and solved.reason == ''
    card = solved._repr_html_()
    assert 'Which &lt;colour&gt; &amp; is it?' in card and 'Only two.' in card and 'class="try-colours"' in card

def test_without_a_runtime_everything_else_is_made(tmp_path, monkeypatch, solved):
    import bearcls.teach.gallery as module
    def refuse(*args): raise WebError('there is no npm')
    monkeypatch.setattr(module, 'write_web', refuse)
    other = module.solve_problem(solved.problem, tmp_path/'colours', n_per_label=20, n_other=5)
    assert other.page is None and other.reason == 'there is no npm' and other.bundle.is_dir() and other.report.is_file()
    with pytest.raises(DataError, match='colours has no page: there is no npm'): other.open()

def test_one_file_answers_in_a_browser(browser, solved):
    classifier, file = Classifier(solved.bundle), Path(solved.other.table.file[0])
    with opened(browser, solved.page.single.as_uri(), offline=True) as tab:
        answer, words = ask(tab, file)
    assert answer['label'] == classifier.predict(file).label

def test_pages_on_a_site_share_a_runtime(browser, solved, tmp_path):
    "And a press on an image below the classifier is a question; nothing is asked of another host"
    from bearcls.teach.gallery import write_try_pages
    sizes = write_try_pages([solved], tmp_path/'gallery', web_runtime_folder(tmp_path))
    assert sizes['colours'] < 1_000_000 < sizes['runtime'] and not (tmp_path/'gallery/colours/sw.js').exists()
    classifier = Classifier(solved.bundle)
    with serving(tmp_path) as address:
        for scheme in ('light', 'dark'):
            context = browser.new_context(color_scheme=scheme)
            page, asked, wrong = context.new_page(), [], []
            page.on('request', lambda request: asked.append(request.url))
            page.on('pageerror', lambda error: wrong.append(str(error)))
            page.goto(f'{address}gallery/colours/index.html')
            page.wait_for_selector('html[data-state=ready], html[data-state=failed]', timeout=120_000)
            page.evaluate("() => { window.answers = []; document.querySelector('main').addEventListener('bearcls:answer', (e) => window.answers.push(e.detail)); }")
            for k in (1, 6):
                page.click(f'.examples button:nth-of-type({k})')
                page.wait_for_selector(f'.bq-card[data-name="image-{k}.jpg"]:not([data-state=waiting])', timeout=60_000)
            answers = {a['name']: a['label'] for a in page.evaluate('() => window.answers')}
            context.close()
            assert answers == {f'image-{k}.jpg': classifier.predict(tmp_path/f'gallery/colours/image-{k}.jpg').label for k in (1, 6)}
            assert not wrong and [u for u in asked if not u.startswith((address, 'blob:', 'data:'))] == []

def web_runtime_folder(tmp_path):
    "The npm package's two files as a folder"
    folder = tmp_path/'onnxruntime-web'
    folder.mkdir()
    for name, content in web_runtime().items(): (folder/name).write_bytes(content)
    return folder
