"""Looking through 416 photographs: bearcls's cleaner beside fastai's, in JupyterLab, in a real browser

python bench/clean.py --out clean.json [--rounds 3]

Both sides get the same Learner and the same images (a copy of data/bears from BEARCLS_SHARED, default ../shared; otherwise drawn ones), show thirty at a time, and begin in a kernel
where everything is imported. The clock runs from the key that runs the cell until the last of the thirty images is drawn; kilobytes are what comes through the page's WebSockets until then.
`bearcls` is given predictions that exist, as after an evaluation; `learner` is bearcls with nothing but the Learner, which predicts while somebody looks already; fastai's always predicts first.
A switch is the choice of another label, until all its images are drawn; `switch_back` returns to a label that was shown before. Two images are marked before the switches, and counted after them (with bearcls among all that are marked, with fastai where they were marked).
Needs JupyterLab, Playwright and a Chromium."""
import contextlib, json, os, shutil, socket, statistics, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))
flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
setup = '''
from fastai.vision.all import *
from fastai.vision.widgets import ImageClassifierCleaner
from torchvision.models import squeezenet1_1
from bearcls.clean.widget import cleaner
from bearcls.interpret.evaluate import evaluate
set_seed(42)
bears = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(valid_pct=.2, seed=42), get_y=parent_label,
                  item_tfms=RandomResizedCrop(224, min_scale=.5), batch_tfms=aug_transforms())
learn = vision_learner(bears.dataloaders(Path('bears'), num_workers=0), squeezenet1_1, pretrained=False)
learn.no_bar().__enter__()
'''
sides = {
    'bearcls': (setup + "seen = evaluate(learn, 'all')", "cleaner('bears', seen=seen)", '.bc-card img', 'select[name=label]'),
    'learner': (setup, 'cleaner(learn)', '.bc-card img', 'select[name=label]'),
    'fastai': (setup, 'ImageClassifierCleaner(learn)', '.jp-OutputArea-output .widget-vbox img', '.jp-OutputArea-output .widget-dropdown select >> nth=0'),
}
drawn = '''([selector, n]) => {
  const found = [...document.querySelectorAll(selector)];
  return found.length >= n && found.every(i => i.complete && i.naturalWidth && !i.dataset.old);
}'''
switch = '''async ([select, selector, value, n]) => {
  for (const image of document.querySelectorAll(selector)) image.dataset.old = 'yes';
  const start = performance.now();
  select.value = value;
  select.dispatchEvent(new Event('change', {bubbles: true}));
  const there = () => { const found = [...document.querySelectorAll(selector)]; return found.length >= n && found.every(i => i.complete && i.naturalWidth && !i.dataset.old); };
  while (!there()) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return (performance.now() - start)/1000;
}'''

@contextlib.contextmanager
def jupyterlab(folder):
    "The address of a JupyterLab in `folder`, with settings of its own"
    with contextlib.closing(socket.create_server(('127.0.0.1', 0))) as s: port = s.getsockname()[1]
    own = {name: str(folder/'jupyter'/name.lower()) for name in ('JUPYTER_CONFIG_DIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')}
    env = {**os.environ, **own, 'TQDM_DISABLE': '1', 'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))}
    options = ['--ip=127.0.0.1', f'--port={port}', '--no-browser', '--IdentityProvider.token=', '--ServerApp.password=', '--ServerApp.allow_root=True', f'--ServerApp.root_dir={folder}']
    with open(folder/'server.log', 'wb') as log, subprocess.Popen([sys.executable, '-m', 'jupyterlab', *options], cwd=folder, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=5): break
                if server.poll() is not None: sys.exit(f'JupyterLab ended:\n{(folder/"server.log").read_text(errors="replace")[-2000:]}')
                time.sleep(.1)
            yield f'http://127.0.0.1:{port}/'
        finally:
            server.terminate()
            try: server.wait(15)
            except subprocess.TimeoutExpired: server.kill()

def write_notebook(file, *sources):
    "A notebook with these cells"
    body = [dict(cell_type='code', execution_count=None, id=f'cell{k}', metadata={}, outputs=[], source=s.strip()) for k, s in enumerate(sources)]
    kernel = dict(name='python3', display_name='Python 3', language='python')
    file.write_text(json.dumps(dict(cells=body, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)), encoding='utf-8')

def run(side, browser, folder, url, number):
    "One side in a fresh kernel: seconds and kilobytes until the images are there, seconds of switches, marks kept"
    prepare, show, images, choice = sides[side]
    name = f'{side}-{number}.ipynb'
    write_notebook(folder/name, prepare + "\nprint('pre' + 'pared')", show)
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        came = dict(bytes=0)
        def count(frame): came['bytes'] += len(frame)
        page.on('websocket', lambda socket: socket.on('framereceived', count))
        page.goto(f'{url}lab/tree/{name}?reset')
        page.get_by_text('Python 3 (ipykernel) | Idle').wait_for(timeout=120_000)
        page.locator('.jp-NotebookPanel .jp-InputArea-editor').first.click()
        page.keyboard.press('Shift+Enter')
        page.locator('.jp-OutputArea-output', has_text='prepared').wait_for(timeout=600_000)
        page.get_by_text('Python 3 (ipykernel) | Idle').wait_for(timeout=120_000)
        before, start = came['bytes'], time.perf_counter()
        page.keyboard.press('Control+Enter')
        page.wait_for_function(drawn, arg=[images, 30], timeout=600_000, polling=20)
        seconds, sent = time.perf_counter() - start, came['bytes'] - before
        if side == 'learner': page.get_by_text('Predictions are there').wait_for(timeout=600_000)
        predicted = time.perf_counter() - start
        mark(side, page)
        select = page.locator(choice).element_handle()
        options = select.evaluate('s => [...s.options].map(o => o.value).filter(Boolean)')
        time.sleep(1)
        forth = [page.evaluate(switch, [select, images, label, 25]) for label in options[1:]]
        back = page.evaluate(switch, [select, images, options[0], 25])
        return dict(side=side, round=number, seconds=seconds, kilobytes=sent/1000, seconds_predictions=predicted if side == 'learner' else None,
            switches=forth, switch=statistics.median(forth), switch_back=back, marks_kept=marks(side, page))

def mark(side, page):
    "Mark the first two images of the first label to be deleted"
    if side == 'fastai':
        for k in (2, 3): page.locator('.jp-OutputArea-output .widget-dropdown select').nth(k).select_option('<Delete>')
        return
    page.locator('select[name=label]').select_option('black')
    page.wait_for_function("() => [...document.querySelectorAll('.bc-card')].every(c => c.dataset.file.startsWith('black/'))")
    for k in (0, 1): page.locator('.bc-card').nth(k).get_by_role('button', name='Delete').click()

def marks(side, page):
    "How many of the two marks are shown"
    if side == 'fastai': return page.eval_on_selector_all('.jp-OutputArea-output .widget-dropdown select', "found => found.filter(s => s.selectedOptions[0]?.text == '<Delete>').length")
    page.locator('select[name=show]').select_option('marked')  # the order may have changed meanwhile, so that they stand on another page
    from playwright.sync_api import TimeoutError as TooLate
    with contextlib.suppress(TooLate): page.wait_for_function("() => document.querySelectorAll('.bc-card').length && [...document.querySelectorAll('.bc-card')].every(c => c.dataset.mark)", timeout=5000)
    return page.locator('.bc-card[data-mark=delete]').count()

def main():
    parser = arguments(__doc__)
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright
    from bearcls.deploy.check import find_browser
    program = find_browser()
    if program is None: sys.exit('No Chromium on this machine')
    runs = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp, sync_playwright() as p:
        folder, photos = Path(tmp), Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared'))/'data'/'bears'
        if photos.is_dir(): shutil.copytree(photos, folder/'bears')
        else:
            print(f'No photographs in {photos}: drawn images are shown')
            from bearcls.sample.bears import draw_bears
            draw_bears(folder/'bears', n_per_label=139, faults=False)
        settings = folder/'jupyter'/'jupyterlab_settings_dir'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
        settings.parent.mkdir(parents=True)
        settings.write_text('{"fetchNews": "false"}', encoding='utf-8')
        browser = p.chromium.launch(executable_path=program, args=flags)
        with jupyterlab(folder) as url:
            for n in range(args.rounds):
                for side in list(sides)[::-1 if n % 2 else 1]:
                    shutil.rmtree(folder/'.cleaning', ignore_errors=True)
                    runs.append(r := run(side, browser, folder, url, n))
                    print(f'{side:10}{n:>3}{r["seconds"]:>8.2f} s{r["kilobytes"]:>8.0f} kB   switch {r["switch"]:.3f} s, back {r["switch_back"]:.3f} s, {r["marks_kept"]} of 2 marks kept', flush=True)
        browser.close()
    def middle(side, figure): return round(statistics.median(r[figure] for r in runs if r['side'] == side), 3)
    result = {}
    for side in sides:
        of = '' if side == 'bearcls' else f'_{side}'
        result |= {f'seconds_first_images{of}': middle(side, 'seconds'), f'kilobytes_30{of}': middle(side, 'kilobytes'), f'seconds_switch{of}': middle(side, 'switch'),
                   f'seconds_switch_back{of}': middle(side, 'switch_back'), f'marks_kept{of}': min(r['marks_kept'] for r in runs if r['side'] == side)}
    result['seconds_predictions_learner'] = middle('learner', 'seconds_predictions')
    save({**result, 'runs': runs}, args.out)

if __name__ == '__main__': main()
