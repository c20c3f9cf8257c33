"""A bundle as a page without a server: how large, how soon ready, how fast, and how near to Python

python bench/web.py --out web.json [--bundle FOLDER] [--rounds 5] [--images 100]

The page is opened as one file from the disk, in Chromium, with the network off. `--bundle` is any bundle; without it a SqueezeNet 1.1 is trained on the photographs of BEARCLS_SHARED (default ../shared; drawn ones
and random weights where it is not there), and a small network of random weights, whose answers hang on edges and grain, is asked as well, since a good model is so sure of its answers that differences do not show.

single_mb           the file, in megabytes
visit_mb            what a first visit to the folder loads
ready_s             from the start of opening the file to the model's being ready, in a browser that has just been started and knows nothing; the median
answer_s            from choosing a photograph to its answer on the page; the median over all photographs
answer_12mp_s       the same for one of 12 megapixels as a phone takes them
largest_difference  between the probabilities of page and Python, over all photographs and both models; `moved_mean` is the mean
other_hosts         requests to anything but the page itself, of the file and of the folder served on this machine"""
import functools, http.server, os, re, statistics, sys, tempfile, threading, time
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(root), str(root/'tests')]
shared = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared')).resolve()
listen = "() => { window.answers = []; document.querySelector('main').addEventListener('bearcls:answer', (e) => window.answers.push(e.detail)); }"

def photographs(work, n):
    "Files, and whether they are real"
    from bearcls.folders import image_files
    from bearcls.sample.bears import draw_bears
    real = (shared/'data'/'bears').is_dir()
    path = shared/'data'/'bears' if real else draw_bears(work/'bears', n_per_label=60, seed=1, faults=False)
    files = image_files(path)
    originals = image_files(shared/'data'/'originals') if (shared/'data'/'originals').is_dir() else []
    return path, files[::max(1, len(files)//n)][:max(0, n - len(originals))] + originals, real

def trained(work, path, real):
    "A bundle to ask"
    import warnings
    warnings.filterwarnings('ignore')
    from bearcls.export.convert import export_bundle
    from bearcls.train.learner import train
    weights = real and (shared/'torch').is_dir()
    if weights: os.environ['TORCH_HOME'] = str(shared/'torch')
    learn = train(path, seed=0, quiet=True, **(dict(route='fast', arch='squeezenet1_1') if weights else dict(route='scratch', epochs=1)))
    return export_bundle(learn, work/'bundle')

def ready(page):
    "Wait for the model"
    page.wait_for_selector('html[data-state=ready], html[data-state=offline], html[data-state=failed]', timeout=120_000)
    assert page.locator('html').get_attribute('data-state') != 'failed', page.locator('#state').inner_text()

def ask(page, file):
    "Answer of the page, and the seconds until it stands there"
    start = time.perf_counter()
    page.set_input_files('input[multiple]', str(file))
    page.wait_for_selector('.bq-card:not([data-state=waiting])', timeout=120_000)
    seconds, answers = time.perf_counter() - start, page.evaluate('() => window.answers.splice(0)')
    assert len(answers) == 1, f'{file.name}: {page.locator(".bq-card").inner_text()}'
    return answers[0], seconds

def largest(page, classifier, files):
    "Differences to Python in all photographs, and seconds for each"
    pairs = [(classifier.predict(f), *ask(page, f)) for f in files]
    return [max(abs(p - there['probabilities'][label]) for label, p in here.probabilities.items()) for here, there, _ in pairs], [s for *_, s in pairs]

def launch(playwright):
    "Chromium, as the tests find it"
    from bearcls.deploy.check import find_browser
    from conftest import flags
    program = find_browser()
    return playwright.chromium.launch(executable_path=program, args=flags)

def measure(page, bundle, files, large, rounds):
    "All figures of one bundle's page"
    from playwright.sync_api import sync_playwright
    from bearcls.inference.classifier import Classifier
    out, asked, starts, classifier = dict(single_mb=page.single.stat().st_size/1e6, visit_mb=page.visit/1e6), [], [], Classifier(bundle)
    with sync_playwright() as p:
        for _ in range(rounds):
            browser = launch(p)
            context = browser.new_context()
            context.set_offline(True)
            context.on('request', lambda request: asked.append(request.url))
            tab, start = context.new_page(), time.perf_counter()
            tab.goto(page.single.as_uri())
            ready(tab)
            starts.append(time.perf_counter() - start)
            if len(starts) < rounds: browser.close()
        tab.evaluate(listen)
        ask(tab, files[0])
        apart, seconds = largest(tab, classifier, files)
        out |= dict(ready_s=statistics.median(starts), ready_s_all=starts, answer_s=statistics.median(seconds), answer_12mp_s=statistics.median(ask(tab, large)[1] for _ in range(3)), largest_difference=max(apart), moved_mean=statistics.mean(apart))
        own = [page.single.as_uri()]
        with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(page.dest))) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            own.append(f'http://127.0.0.1:{server.server_port}/')
            context = browser.new_context()
            context.on('request', lambda request: asked.append(request.url))
            tab = context.new_page()
            tab.goto(own[1])
            ready(tab)
            tab.evaluate(listen)
            ask(tab, files[0])
            server.shutdown()
        browser.close()
    return out | dict(other_hosts=len({re.sub(r'(?<=\w)/.*', '', u) for u in asked if not u.startswith((*own, 'blob:', 'data:'))}))

class Quiet(http.server.SimpleHTTPRequestHandler):
    "A server of plain files that says nothing"
    def log_message(self, *args): pass

def camera(work, file):
    "A photograph of 12 megapixels with grain"
    import numpy as np
    from PIL import Image, ImageChops
    from bearcls.images import load_image
    grain = Image.fromarray(np.clip(np.random.default_rng(0).normal(128, 6, (3000, 4000, 1)), 0, 255).astype(np.uint8).repeat(3, 2))
    ImageChops.add(load_image(file).resize((4000, 3000), Image.Resampling.BICUBIC), grain, offset=-128).save(work/'camera.jpg', quality=90)
    return work/'camera.jpg'

def main():
    parser = arguments(__doc__)
    parser.add_argument('--bundle', type=Path, help='bundle to make the page of (default: one is trained)')
    parser.add_argument('--runtime', type=Path, help='folder or .tgz of onnxruntime-web (default: from the cache, or through npm)')
    parser.add_argument('--rounds', type=int, default=5, help='how often the page is opened in a new browser')
    parser.add_argument('--images', type=int, default=100, help='photographs to ask about')
    args = parser.parse_args()
    from test_web import texture_bundle
    from bearcls.deploy.web import write_web
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(tmp)
        path, files, real = photographs(work, args.images)
        if not real: print(f'No photographs in {shared}: drawn images')
        bundle = args.bundle or trained(work, path, real)
        result = measure(write_web(bundle, work/'page', args.runtime), bundle, files, camera(work, files[0]), args.rounds)
        texture = texture_bundle(work/'texture', side=224, samples=files[::5])
        grain = measure(write_web(texture, work/'other', args.runtime), texture, files, files[0], 1)
        result |= dict(largest_difference_texture=grain['largest_difference'], largest_difference=max(result['largest_difference'], grain['largest_difference']),
            other_hosts=result['other_hosts'] + grain['other_hosts'], images=len(files), real=real)
    save(result, args.out)

if __name__ == '__main__': main()
