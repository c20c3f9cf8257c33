"The notebook application, served by Voilà, in a real browser"
import io
import pytest
from PIL import Image
from tiny_bundle import furs, make_bundle

pytest.importorskip('voila', reason='voila is not installed')
from bearcls.app import serve_app

def picture(colour, size=(400, 300), format='JPEG', **options):
    "A picture of one colour as the bytes of a file"
    out = io.BytesIO()
    Image.new('RGB', size, colour).save(out, format, **options)
    return out.getvalue()

@pytest.fixture(scope='module')
def url(tmp_path_factory):
    with serve_app(make_bundle(tmp_path_factory.mktemp('bundle')/'furs')) as address: yield address

@pytest.fixture(params=[1200, 360])
def page(browser, url, request):
    tab = browser.new_page(viewport=dict(width=request.param, height=800))
    tab.hosts = set()
    tab.on('response', lambda r: tab.hosts.add(r.url.split('/')[2]) if r.url.startswith('http') else None)
    tab.goto(url)
    tab.get_by_role('button', name='Choose a picture').wait_for(timeout=60_000)
    yield tab
    tab.close()

def choose(page, name, content, kind='image/jpeg', path=None):
    "Choose a file, and wait for the words that stand in the answer when it is there"
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Choose a picture').click()
    chooser.value.set_files(path or dict(name=name, mimeType=kind, buffer=content))

def status(page): return page.get_by_role('status')

def test_good_bad_good(page, url):
    choose(page, 'brown.jpg', picture(furs['brown']))
    status(page).get_by_alt_text('brown.jpg').wait_for()
    assert status(page).inner_text().startswith('brown')

    choose(page, 'bear.jpg', b'this is text')
    status(page).get_by_text('bear.jpg cannot be looked at: the bytes are no picture').wait_for()
    assert page.locator('img[alt="brown.jpg"]').count() == 0, 'the old picture is still there'
    assert 'Traceback' not in page.content() and 'site-packages' not in page.content()

    choose(page, 'white.png', picture('white', format='PNG'), 'image/png')
    status(page).get_by_alt_text('white.png').wait_for()
    assert status(page).inner_text().startswith('white')
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth'), 'the page is wider than the screen'
    assert page.hosts == {url.split('/')[2]}, 'the page asked other hosts'

def test_every_kind_of_file(page):
    sideways = Image.Exif()
    sideways[0x0112] = 6
    for name, content, expected in [
        ('empty.jpg', b'', 'the file holds no bytes'),
        ('phone.jpg', picture(furs['black'], (400, 200), exif=sideways), 'phone.jpg'),
        ('web.webp', picture(furs['white'], format='WEBP'), 'web.webp'),
        ('half.jpg', picture('white', (900, 900))[:3000], 'the file ends before the picture does')]:
        choose(page, name, content)
        found = status(page).get_by_alt_text(expected) if expected == name else status(page).get_by_text(expected)
        found.wait_for()
    choose(page, 'doubt.png', picture(tuple((a + b)//2 for a, b in zip(furs['black'], furs['brown'])), format='PNG'))
    status(page).get_by_text('Ask a person').wait_for()

def test_a_photograph_of_30_megabytes(page, tmp_path):
    "Larger than the 10 MiB at which the connection would break by default; and the next one is answered too"
    large = tmp_path/'large.bmp'
    large.write_bytes(picture(furs['brown'], (4000, 2600), 'BMP'))
    assert large.stat().st_size > 30_000_000
    choose(page, '', b'', path=str(large))
    status(page).get_by_alt_text('large.bmp').wait_for(timeout=60_000)
    assert status(page).inner_text().startswith('brown')
    choose(page, 'small.png', picture('white', format='PNG'))
    status(page).get_by_alt_text('small.png').wait_for()

def test_the_same_file_twice(page):
    for _ in range(2):
        choose(page, 'white.jpg', picture('white'))
        status(page).get_by_alt_text('white.jpg').wait_for()
        choose(page, 'text.jpg', b'text')
        status(page).get_by_text('text.jpg cannot be looked at').wait_for()
