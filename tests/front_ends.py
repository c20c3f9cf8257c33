"Jupyter's front ends in a real browser: servers, a notebook that is opened and run, and whether its widgets can be read"
import contextlib, importlib.util, json, os, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest

def write_notebook(folder, name, *sources):
    "A notebook of code cells that were not run"
    kernel = dict(name='python3', display_name='Python 3', language='python')
    cells = [dict(cell_type='code', execution_count=None, id=f'cell{k}', metadata={}, outputs=[], source=source) for k, source in enumerate(sources)]
    (folder/f'{name}.ipynb').write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)), encoding='utf-8')

def wait_until(true, what, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(.1)

# ---------------------------------------------------------------- two servers

@contextlib.contextmanager
def serving(folder, module, *options, ready, **environment):
    "A server of Jupyter's on a free port of this machine, with settings of its own"
    with contextlib.closing(socket.create_server(('127.0.0.1', 0))) as s: port = s.getsockname()[1]
    own = {name: str(folder/'jupyter'/name.lower()) for name in ('JUPYTER_CONFIG_DIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')}
    root = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, **own, **environment, 'TQDM_DISABLE': '1', 'PYTHONPATH': os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))}
    command = [sys.executable, '-m', module, *options, '--no-browser', f'--port={port}']
    with open(folder/'server.log', 'wb') as log, subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as server:
        try:
            url = f'http://127.0.0.1:{port}/'
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(url + ready, timeout=5): break
                assert server.poll() is None, (folder/'server.log').read_text(errors='replace')[-2000:]
                time.sleep(.1)
            yield url
        finally:
            server.terminate()
            try: server.wait(15)
            except subprocess.TimeoutExpired: server.kill()

fronts = dict(lab='lab/tree/{}.ipynb?reset', notebook='notebooks/{}.ipynb')  # where one server shows a notebook in JupyterLab, and in Notebook 7

@contextlib.contextmanager
def jupyter(folder, **environment):
    "A server with JupyterLab, and with Notebook 7 where that is installed"
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
    options = ['--ip=127.0.0.1', '--IdentityProvider.token=', '--ServerApp.password=', '--ServerApp.allow_root=True', f'--ServerApp.root_dir={folder}']
    setting(folder, 'notification', dict(fetchNews='false', checkForUpdates=False))
    module = 'notebook' if importlib.util.find_spec('notebook') else 'jupyterlab'
    with serving(folder, module, *options, ready='api', **environment) as url: yield url

def front_url(url, front, name):
    "The address of a notebook in a front end; the test is skipped where that is not installed"
    if front == 'notebook': pytest.importorskip('notebook', minversion='7', reason='Notebook 7 is not installed')
    return url + fronts[front].format(name)

@contextlib.contextmanager
def voila_page(folder, name, **environment):
    "The address at which Voilà shows a notebook; the test is skipped where Voilà is not installed"
    pytest.importorskip('voila', reason='Voilà is not installed')
    with serving(folder, 'voila', '.', '--Voila.ip=127.0.0.1', ready='voila/static/favicon.ico', **environment) as url: yield f'{url}voila/render/{name}.ipynb'

def setting(folder, name, value):
    "Set a user's setting of JupyterLab"
    file = folder/'jupyter'/'jupyterlab_settings_dir'/'@jupyterlab'/'apputils-extension'/f'{name}.jupyterlab-settings'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding='utf-8')

# ---------------------------------------------------------------- a notebook in JupyterLab or Notebook 7

def open_notebook(page, folder, url, front, name, theme='JupyterLab Light'):
    "Open a notebook, and wait for its cells and its kernel"
    setting(folder, 'themes', dict(theme=theme))
    page.goto(front_url(url, front, name))
    page.locator('.jp-Notebook .jp-Cell').first.wait_for(timeout=120_000)
    idle(page)

def idle(page):
    "Wait until the kernel of the page's notebook is, and the page is connected to it"
    server, name = page.url.split('/')[2], page.url.split('/')[-1].split('?')[0]
    def ready():
        sessions = page.request.get(f'http://{server}/api/sessions').json()
        return any(s['path'] == name and s['kernel']['execution_state'] == 'idle' and s['kernel']['connections'] for s in sessions)
    wait_until(ready, 'the kernel is not idle', 120)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status=idle]').first.wait_for(timeout=120_000, state='attached')

def run_cells(page, n=1):
    "Run the first `n` cells; Control+Enter for the last, since Shift+Enter would make another and take the focus there, sooner or later"
    page.locator('.jp-NotebookPanel .jp-InputArea-editor').first.click()
    for _ in range(n - 1): page.keyboard.press('Shift+Enter')
    page.keyboard.press('Control+Enter')

def await_output(page, selector):
    "Wait for an element that the notebook shows, unless it shows an error"
    trouble = page.locator('[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type="application/vnd.jupyter.error"]')
    page.locator(selector).first.or_(trouble.first).first.wait_for(timeout=120_000)
    assert not trouble.count(), trouble.first.inner_text()

def check_keys(page, selector):
    "Keys with which Jupyter cuts, deletes and makes cells and restarts the kernel do none of it in a widget"
    n_cells = page.locator('.jp-Notebook .jp-Cell').count()
    page.locator(selector).focus()
    for key in 'xddb00iicv': page.keyboard.press(key)
    assert page.locator('.jp-Notebook .jp-Cell').count() == n_cells and not page.locator('.jp-Dialog').count(), 'a key of the widget reached the notebook'

# ---------------------------------------------------------------- what it looks like

contrasts = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v/255).map(v => v <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4).reduce((s, v, i) => s + v*[.2126, .7152, .0722][i], 0);
  const ground = el => { for (; el; el = el.parentElement) { const c = numbers(getComputedStyle(el).backgroundColor); if (c.length < 4 || c[3] > .99) return c; } };
  const found = [];
  for (const el of document.querySelectorAll('.bearcls-cleaner *')) {
    if (!el.checkVisibility() || ![...el.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || el.tagName == 'OPTION') continue;
    const [a, b] = [light(numbers(getComputedStyle(el).color)), light(ground(el))].sort((x, y) => y - x);
    found.push([(a + .05)/(b + .05), `${el.tagName} ${el.className} ${el.textContent.slice(0, 30)}`]);
  }
  return found;
}"""

def check_contrasts(page, widget='bearcls-cleaner', least=12):
    "More than `least` texts are shown, and each can be read"
    found = page.evaluate(contrasts.replace('.bearcls-cleaner', f'.{widget}'))
    low = [f for f in found if f[0] < 4.5]
    assert not low and len(found) > least, low[:20] or len(found)

def in_both_themes(page, widget):
    "On a light page, then on a dark one"
    for theme, colour in (('light', 'white'), ('dark', '#111')):
        paint(page, colour)
        page.locator(f'.{widget}[data-theme={theme}]').wait_for()
        yield theme

def check_narrow(page, width):
    "Nothing is cut off on a telephone"
    page.set_viewport_size(dict(width=width, height=800))
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth'), 'the page is wider than the screen'

def paint(page, colour):
    "Give everything behind the cleaner one colour"
    page.evaluate("""colour => {
      for (let el = document.querySelector('.bearcls-cleaner').parentElement; el; el = el.parentElement) el.style.background = colour;
    }""", colour)

def image_bytes(page, name):
    "Keep an image of the page in the folder that BEARCLS_IMAGES names, if it names one"
    folder = os.environ.get('BEARCLS_IMAGES')
    if folder: page.screenshot(path=f'{folder}/{name}.png')

def draw_for_site(place, name):
    "Draw an image of the site anew, in few colours"
    from PIL import Image
    file = Path(os.environ['BEARCLS_IMAGES'])/name
    place.screenshot(path=file)
    with Image.open(file) as image: image.convert('RGB').quantize(256, kmeans=2).save(file, optimize=True)
    return file
