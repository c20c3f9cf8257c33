"""The notebook application beside the book's, both served by Voilà on this machine, in one run.

python bench/app.py --out app.json [--rounds 3]

The book's application is a FileUpload, an Output, a Label and a Button around `load_learner`, in Voilà as it comes (its click handler is written for ipywidgets 8).
Ours is what `bearcls app` serves. Both have the same network. Each visit is a fresh browser window without a cache: `seconds_usable` is the time from the address to an
upload button that can be pressed; `mb_per_visitor` is the memory of the visitor's kernel after one answer (PSS on Linux, where shared pages are shared out; RSS elsewhere);
`kernels_gone_s` is how long the kernel lives on after its page was closed, and `kernels_gone_killed_s` after the browser was killed, which says no goodbye. null: longer than was waited for.
Needs Chromium and Playwright.
"""
import contextlib, json, os, socket, statistics, subprocess, sys, time, urllib.request
from pathlib import Path
import psutil
from playwright.sync_api import sync_playwright
from common import arguments, save, working_folder

root = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(root), str(root/'bench')]
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
book = '''
from fastai.vision.all import *
import ipywidgets as widgets
learn_inf = load_learner('../export.pkl')
btn_upload, out_pl, lbl_pred, btn_run = widgets.FileUpload(), widgets.Output(), widgets.Label(), widgets.Button(description='Classify')

def on_click_classify(change):
    img = PILImage.create(btn_upload.value[-1].content.tobytes())
    out_pl.clear_output()
    with out_pl: display(img.to_thumb(128, 128))
    pred, pred_idx, probs = learn_inf.predict(img)
    lbl_pred.value = f'Prediction: {pred}; Probability: {probs[pred_idx]:.04f}'

btn_run.on_click(on_click_classify)
widgets.VBox([widgets.Label('Select your bear!'), btn_upload, btn_run, out_pl, lbl_pred])
'''

@contextlib.contextmanager
def serve_book(work):
    "The book's application in Voilà as it comes"
    folder = work/'book'
    folder.mkdir(exist_ok=True)
    cell = dict(cell_type='code', execution_count=None, id='book', metadata={}, outputs=[], source=book)
    kernel = dict(name='python3', display_name='Python 3', language='python')
    (folder/'book.ipynb').write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)), encoding='utf-8')
    with contextlib.closing(socket.create_server(('127.0.0.1', 0))) as s: port = s.getsockname()[1]
    with open(folder/'server.log', 'wb') as log, subprocess.Popen([sys.executable, '-m', 'voila', 'book.ipynb', '--no-browser', f'--port={port}'], cwd=folder, stdout=log, stderr=log) as server:
        try:
            url = f'http://127.0.0.1:{port}/'
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f'{url}voila/static/favicon.ico', timeout=2): break
                if server.poll() is not None: sys.exit((folder/'server.log').read_text(errors='replace')[-2000:])
                time.sleep(.1)
            yield url
        finally:
            server.terminate()
            server.wait(15)

def kernels(side):
    "Processes of kernels that a side's server has started"
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any('ipykernel' in word for word in child.cmdline()) and any(word.endswith(notebooks[side]) for word in child.parent().cmdline()): found.add(child.pid)
    return found

notebooks = dict(bearcls='app.ipynb', book='book.ipynb')

def megabytes(pid):
    "Memory of a process"
    info = psutil.Process(pid).memory_full_info()
    return (getattr(info, 'pss', 0) or info.rss)/1e6

def quiet(side, n=0, seconds=1.5, limit=60):
    "Wait until there are `n` kernels, and none of them starts or works; gives them"
    since, before, end = time.monotonic(), None, time.monotonic() + limit
    while time.monotonic() - since < seconds and time.monotonic() < end:
        now = {}
        for pid in kernels(side):
            with contextlib.suppress(psutil.Error): now[pid] = sum(psutil.Process(pid).cpu_times()[:2])
        if before is None or len(now) < n or now.keys() != before.keys() or sum(now.values()) - sum(before.values()) > .05: since = time.monotonic()
        before = now
        time.sleep(.25)
    return set(now)

def visit(browser, side, url, image):
    "A visitor who comes, chooses an image and reads the answer: the page, its kernel, seconds until the page could be used, and from the image to its answer"
    before = quiet(side, 1 if side == 'bearcls' else 0)
    context = browser.new_context(viewport=dict(width=1200, height=900))
    page = context.new_page()
    start = time.perf_counter()
    page.goto(url, wait_until='commit', timeout=120_000)
    button = page.get_by_role('button', name='Choose images' if side == 'bearcls' else 'Upload')
    button.wait_for(timeout=120_000)
    button.click(trial=True)  # nothing lies over it
    usable = time.perf_counter() - start
    with page.expect_file_chooser() as chooser: button.click()
    start = time.perf_counter()
    chooser.value.set_files(str(image))
    if side == 'bearcls': page.locator('.bq-head').wait_for(timeout=60_000)
    else:
        page.get_by_role('button', name='Upload (1)').wait_for(timeout=60_000)
        page.get_by_role('button', name='Classify').click()
        page.get_by_text('Probability: ').wait_for(timeout=60_000)
    answer = time.perf_counter() - start
    after = quiet(side, 2 if side == 'bearcls' else 1)
    return page, before if side == 'bearcls' else after - before, usable, answer  # ours took the kernel that waited, and another one waits by now

def gone(side, pids, wait):
    "Seconds until none of these kernels is left; None if that takes longer than `wait`, and then they are ended"
    start = time.perf_counter()
    while time.perf_counter() - start < wait:
        if not pids & kernels(side): return round(time.perf_counter() - start, 2)
        time.sleep(.1)
    for pid in pids & kernels(side): psutil.Process(pid).kill()

def launch(playwright):
    from bearcls.deploy.check import find_browser
    program = find_browser()
    if program is None: sys.exit('This needs Chromium')
    return playwright.chromium.launch(executable_path=program, args=['--no-sandbox', '--disable-gpu', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'])  # no network is part of this

def kill_browser():
    "The browser is gone at once, as when a phone's battery is empty"
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if '--remote-debugging-pipe' in child.cmdline(): child.kill()

def measure(p, urls, image, rounds, wait):
    "All rounds; the sides take turns in being first"
    browser, runs = launch(p), []
    with contextlib.closing(browser.new_page()) as page: page.goto('about:blank')  # the browser itself is warm for both
    for number in range(rounds):
        row = dict(round=number)
        for side in ('bearcls', 'book') if number % 2 == 0 else ('book', 'bearcls'):
            page, own, row[f'seconds_usable_{side}'], row[f'seconds_answer_{side}'] = visit(browser, side, urls[side], image)
            row[f'mb_per_visitor_{side}'] = sum(map(megabytes, own))
            page.close(run_before_unload=True)
            row[f'kernels_gone_s_{side}'] = gone(side, own, wait)
            page.context.close()
        print('  '.join(f'{k} {v:.2f}' if isinstance(v, float) else f'{k} {v}' for k, v in row.items()), flush=True)
        runs.append(row)
    browser.close()
    return runs

def measure_killed(urls, image, wait):
    "How long a kernel lives on when its browser is killed"
    out = {}
    for side in urls:
        with sync_playwright() as p:
            _, own, *_ = visit(launch(p), side, urls[side], image)
            kill_browser()
            out[f'kernels_gone_killed_s_{side}'] = gone(side, own, wait)
    return out

def figures(runs):
    "Medians, ours under the plain name"
    out = {}
    for name in ('seconds_usable', 'seconds_answer', 'mb_per_visitor', 'kernels_gone_s'):
        for side, suffix in (('bearcls', ''), ('book', '_book')):
            values = [r[f'{name}_{side}'] for r in runs]
            out[name + suffix] = None if None in values else round(statistics.median(values), 2)
    return out

def main():
    parser = arguments(__doc__, keeps='the models')
    parser.add_argument('--rounds', type=int, default=3, help='visits to each side, in turn')
    parser.add_argument('--wait', type=float, default=75, help='seconds to wait for a kernel whose page is closed')
    args = parser.parse_args()
    from inference import prepare, shared
    from bearcls.app.notebook import serve_app
    with working_folder(args.work) as work:
        _, real = prepare(work, 1)
        if not real: print(f'No photographs and weights in {shared}: drawn images, and a network from nothing')
        with serve_app(work/'bundle', feedback=work/'feedback.sqlite') as ours, serve_book(work) as theirs:
            urls, image = dict(bearcls=ours, book=theirs), work/'vga.jpg'
            with sync_playwright() as p: runs = measure(p, urls, image, args.rounds, args.wait)
            killed = {k.replace('_bearcls', ''): v for k, v in measure_killed(urls, image, args.wait).items()}
        result = {**figures(runs), **killed, 'real': real, 'runs': runs}
    save(result, args.out)

if __name__ == '__main__': main()
