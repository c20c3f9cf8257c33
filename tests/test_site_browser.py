"The built site in a browser: accessible in light and dark, on a desk and on a phone, and no reader's browser asks another host"
import functools, http.server, threading
import pytest

widths = (1200, 400)
# one of each kind of page: home, long reference page, door, tutorial, tables, images and widgets, questions and answers, small page
inspected = ('index', 'inference/classifier', 'gather/index', 'tutorials/first_classifier', 'deploy/targets', 'clean/widget', 'interpret/slices',
    'explain/a_year_at_the_campsite')
heaviest = 1_000_000  # bytes of a page with its images, without the styles and scripts that all pages share

@pytest.fixture(scope='module')
def address(site):
    "The site on a server, as readers get it"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()

@pytest.fixture(scope='module')
def pages(site):
    "Every page, without those that only lead to another"
    found = [f.relative_to(site).as_posix() for f in site.rglob('*.html') if '_static' not in f.parts]
    return sorted(p for p in found if 'http-equiv="refresh"' not in (site/p).read_text(encoding='utf-8')[:2000])

@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', widths)
def test_pages_are_accessible(site, address, browser, scheme, width):
    "axe finds no serious or critical violation"
    axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe()
    context = browser.new_context(viewport=dict(width=width, height=800), color_scheme=scheme)
    page = context.new_page()
    found = []
    for name in inspected:
        page.goto(f'{address}{name}.html')
        violations = axe.run(page).response['violations']
        found += [(name, v['id'], v['nodes'][0]['html'][:120]) for v in violations if v['impact'] in ('serious', 'critical')]
    context.close()
    assert found == []

def test_axe_notices_a_fault(address, browser):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe()
    page = browser.new_page()
    page.goto(f'{address}index.html')
    page.evaluate("document.querySelector('main, article').insertAdjacentHTML('beforeend', '<p style=\"color:#eee;background:#fff\">pale</p>')")
    assert 'color-contrast' in [v['id'] for v in axe.run(page).response['violations']]
    page.close()

def test_every_page(site, address, browser, pages):
    "On a phone and on a desk, dark and light: no page scrolls sideways, asks another host, has an error in its console, lacks an image or is heavy"
    asked, sent, faults = [], [], []
    context = browser.new_context(viewport=dict(width=400, height=800), color_scheme='dark')
    page = context.new_page()
    context.new_cdp_session(page).send('Network.setCacheDisabled', dict(cacheDisabled=True))  # each page as the first one of a visit
    page.on('request', lambda request: asked.append(request.url))
    def own(request): return request.url.startswith(address) and '/_static/' not in request.url and not request.url.endswith('/searchindex.js')
    page.on('requestfinished', lambda request: own(request) and sent.append(request.sizes()['responseBodySize']))
    page.on('pageerror', lambda error: faults.append(f'{page.url}: {error}'))
    def look(name):
        wide = page.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth')
        if wide > 0: faults.append(f'{name} is {wide} pixels too wide')
        faults.extend(page.evaluate('[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)'))
    for name in pages:
        asked.clear()
        sent.clear()
        page.set_viewport_size(dict(width=400, height=800))
        page.emulate_media(color_scheme='dark')
        page.goto(address + name)
        page.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(image => image.loading = 'eager')")
        page.wait_for_function('[...document.images].every(image => image.complete)')
        look(name)
        page.set_viewport_size(dict(width=1200, height=900))
        page.emulate_media(color_scheme='light')
        look(name)
        faults += [f'{name} asks {url}' for url in asked if not url.startswith((address, 'data:', 'blob:'))]
        if sum(sent) > heaviest: faults.append(f'{name} has {sum(sent):,} bytes')
    context.close()
    assert faults == []

def test_search_from_the_keyboard(address, browser):
    "The index is asked for when a reader searches, and not before"
    page = browser.new_page()
    asked = []
    page.on('request', lambda request: asked.append(request.url))
    page.goto(f'{address}gather/index.html', wait_until='networkidle')
    assert not [url for url in asked if 'search' in url.rpartition('/')[2]]
    page.keyboard.press('Control+k')
    page.wait_for_selector('#pst-search-dialog[open]')
    page.keyboard.press('Escape')
    page.wait_for_selector('#pst-search-dialog', state='hidden')
    page.locator('.bd-header .search-button__button').click()
    page.keyboard.type('load_image')
    page.keyboard.press('Enter')
    page.wait_for_url('**/search.html?q=load_image')
    page.wait_for_selector('ul.search li a', timeout=10_000)
    assert any('images.html' in link for link in page.eval_on_selector_all('ul.search li a', 'links => links.map(l => l.href)'))
    assert [url for url in asked if 'searchindex.js' in url]
    page.locator('ul.search li a').first.click()
    page.wait_for_selector('span.highlighted')
    page.close()

def shown_theme(page): return page.evaluate('[document.documentElement.dataset.mode, document.documentElement.dataset.theme]')

@pytest.mark.parametrize('width', widths)
def test_theme_is_chosen_and_kept(address, browser, width):
    "By mouse and by keyboard, on a desk and in the panel of a phone; before the first word is drawn, also on the next page"
    context = browser.new_context(viewport=dict(width=width, height=800), color_scheme='light')
    page = context.new_page()
    page.goto(f'{address}index.html')
    assert shown_theme(page) == ['auto', 'light']
    place = '.bd-header' if width > 960 else '#pst-primary-sidebar-modal'
    if width < 960: page.locator('.primary-toggle').click()
    button, menu = page.locator(f'{place} .theme-switch-button'), page.locator(f'{place} .theme-switch-container .dropdown-menu')
    button.click()
    box = menu.bounding_box()
    assert 0 <= box['x'] and box['x'] + box['width'] <= width and button.get_attribute('aria-expanded') == 'true'
    menu.get_by_text('Dark').click()
    assert shown_theme(page) == ['dark', 'dark'] and not menu.is_visible()
    button.focus()
    page.keyboard.press('ArrowDown')
    page.keyboard.press('Escape')
    assert not menu.is_visible() and button.evaluate('b => b === document.activeElement')
    assert width > 960 or page.locator('#pst-primary-sidebar-modal').is_visible()
    for key in ('ArrowDown', 'ArrowDown', 'Enter'): page.keyboard.press(key)
    assert shown_theme(page) == ['light', 'light'] and not menu.is_visible()
    page.evaluate("localStorage.setItem('mode', 'dark')")
    page.route('**/pages.js*', lambda route: route.abort())
    page.goto(f'{address}about.html')
    assert shown_theme(page) == ['dark', 'dark']
    context.close()

def test_code_is_copied(address, browser):
    context = browser.new_context(permissions=['clipboard-read', 'clipboard-write'])
    page = context.new_page()
    page.goto(f'{address}tutorials/first_classifier.html')
    page.locator('div.highlight').first.hover()
    page.locator('button.copybtn').first.click()
    page.wait_for_selector('button.copybtn.success')
    assert page.evaluate('navigator.clipboard.readText()') == 'from bearcls.all import *\nfrom bearcls.images import load_image'
    context.close()

def test_sidebar_opens_a_section(address, browser):
    page = browser.new_page(viewport=dict(width=1200, height=800))
    page.goto(f'{address}index.html')
    section = page.locator('.bd-sidebar-primary details').first
    assert not section.evaluate('d => d.open')
    section.locator('.toctree-toggle').first.click()
    assert section.evaluate('d => d.open')
    page.close()

@pytest.mark.parametrize('width', widths)
def test_nothing_moves_while_a_page_is_drawn(address, browser, width):
    "The sum of layout shifts, with scripts and images that come late; 0.1 is what Core Web Vitals call good"
    page = browser.new_page(viewport=dict(width=width, height=800))
    page.add_init_script("""window.moved = 0
        new PerformanceObserver(list => { for (const entry of list.getEntries()) moved += entry.value }).observe({type: 'layout-shift', buffered: true})""")
    def late(route):
        page.wait_for_timeout(150)
        route.continue_()
    page.route('**/*.js*', late)
    page.route('**/_images/*', late)
    for name in ('index', 'tutorials/first_classifier', 'data/loaders'):
        page.goto(f'{address}{name}.html', wait_until='networkidle')
        assert page.evaluate('moved') < 0.05, name
    page.close()

@pytest.mark.parametrize('width', [1200, 1900])
def test_text_stands_in_its_place_before_the_contents_arrive(site, address, browser, width):
    "A browser draws the article while the rest of the page is on its way"
    page = browser.new_page(viewport=dict(width=width, height=800))
    def place(): return page.evaluate("(({x, width}) => [x, width])(document.querySelector('article').getBoundingClientRect())")
    page.goto(f'{address}data/loaders.html')
    whole = place()
    half = (site/'data'/'loaders.html').read_text(encoding='utf-8').partition('<dialog id="pst-secondary-sidebar-modal"')[0]
    page.route('**/data/loaders.html', lambda route: route.fulfill(body=half, content_type='text/html'))
    page.goto(f'{address}data/loaders.html')
    assert place() == whole and page.locator('#pst-secondary-sidebar').count() == 0
    page.close()
