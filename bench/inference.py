"""A bundle's answers beside those of fastai's `load_learner` and `predict`: one model, the same images, in turn

python bench/inference.py --out inference.json [--rounds 3] [--images 416]

A SqueezeNet 1.1 is trained once, on the 416 photographs of BEARCLS_SHARED (default ../shared; drawn ones and random weights where it is not there). `fastai` gets it as the book would have it: a Learner
with Resize and Normalize, exported and loaded with `load_learner`; `bearcls` gets it as a bundle, with the reduced decoding that it was trained with. Both stretch an image to 224 by 224.

cold      a fresh process with nothing imported, whose modules are compiled already: from its start to the first answer, about an image of 640×480, and what it then holds of the memory (resident at its peak)
vga, 12mp one answer in a process where everything is loaded and warm; images of 640×480 and 4000×3000, the latter as large ones from the web are (about 1 MB)
camera    the same with a camera's grain in it, about 3.5 MB: what it takes to read a JPEG grows with its bytes, and cannot be had for less
folder    all answers about a folder of full-size photographs: `get_preds` with the DataLoaders' own workers, and `predict_batch`
decode    the same folder, only opened, with the same reduced decoding: `load_image`, in as many threads as `predict_batch` has

The full-size photographs are the 416 ones enlarged to 12 megapixels, with a camera's grain, as JPEGs of quality 90; about 4 MB each, in a temporary folder. All ratios are medians of the ratios within a round.
Then, once: `agreement`, the largest difference between both sides' probabilities where both decode in full; `moved_max`, `moved_mean` and `labels_changed`, what reduced decoding changes, on every photograph
that is there; `auroc` and `share_caught`, drawn images without a bear against photographs that were held back; `calibration_error` of those."""
import json, os, statistics, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from common import arguments, save, working_folder

root = Path(__file__).resolve().parents[1]
shared = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared')).resolve()
memory = '''
try: kb = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
except OSError:
    import resource, sys
    kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1024 if sys.platform == 'darwin' else 1)
print(kb*1024/1e6)
'''
head = dict(bearcls='''
from bearcls.inference.classifier import Classifier
model = Classifier('bundle')
def ask(file): return model.predict(file).label
''', fastai='''
import warnings
warnings.filterwarnings('ignore')
from fastai.vision.all import *
model = load_learner('export.pkl')
model.no_bar().__enter__()
def ask(file): return model.predict(file)[0]
''')
cold = '''print(ask('vga.jpg'), flush=True)'''
single = '''
import json, statistics, sys, time
def seconds(file, n):
    for _ in range(3): ask(file)
    times = []
    for _ in range(n):
        start = time.perf_counter()
        ask(file)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
print(json.dumps({name: seconds(name + '.jpg', 15) for name in ('vga', '12mp', 'camera')}))
'''
folder = dict(bearcls='''
import json, time
from bearcls.folders import find_images
files = find_images('full')
ask('vga.jpg')
start = time.perf_counter()
rows = model.predict_batch(files, quiet=True)
seconds = time.perf_counter() - start
assert all(r.status == 'ok' for r in rows)
print(json.dumps(dict(seconds=seconds, n=len(rows))))
''', fastai='''
import json, time
if __name__ == '__main__':
    files = sorted(get_image_files('full'))
    ask('vga.jpg')
    start = time.perf_counter()
    probabilities, _ = model.get_preds(dl=model.dls.test_dl(files))
    print(json.dumps(dict(seconds=time.perf_counter() - start, n=len(probabilities))))
''', decode='''
import json, time
from concurrent.futures import ThreadPoolExecutor
from bearcls.images import load_image
from bearcls.folders import find_images
from bearcls.inference.bundle import read_bundle
from bearcls.core import usable_cores
files, min_side = find_images('full'), read_bundle('bundle').min_side
load_image('vga.jpg', min_side)
start = time.perf_counter()
with ThreadPoolExecutor(usable_cores()) as pool: n = sum(image.width > 0 for image in pool.map(lambda f: load_image(f, min_side), files))
print(json.dumps(dict(seconds=time.perf_counter() - start, n=n)))
''')

def prepare(work, n):
    "Learner, bundle and images"
    import warnings
    warnings.filterwarnings('ignore')
    from fastai.vision.all import (CategoryBlock, CrossEntropyLossFlat, DataBlock, ImageBlock, Learner, Normalize, RandomSplitter, Resize, ResizeMethod, get_image_files,
        imagenet_stats, parent_label)
    from bearcls.folders import image_files
    from bearcls.export.convert import export_bundle
    from bearcls.sample.bears import draw_bears
    from bearcls.train.learner import train
    real = (shared/'data'/'bears').is_dir() and (shared/'torch').is_dir()
    if real: os.environ['TORCH_HOME'] = str(shared/'torch')
    if (work/'camera.jpg').exists(): return (shared/'data'/'bears' if real else work/'bears'), real
    path = shared/'data'/'bears' if real else draw_bears(work/'bears', n_per_label=60, seed=1, faults=False)
    learn = train(path, seed=0, quiet=True, **(dict(route='fast', arch='squeezenet1_1') if real else dict(route='scratch', epochs=1)))
    export_bundle(learn, work/'bundle')
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(seed=0), get_y=parent_label,
        item_tfms=Resize(224, method=ResizeMethod.Squish), batch_tfms=Normalize.from_stats(*imagenet_stats))
    Learner(block.dataloaders(path), learn.model, CrossEntropyLossFlat(), path=work).export('export.pkl')
    held = work/'held'
    for f in learn.dls.valid_ds.items:
        (held/Path(f).parent.name).mkdir(parents=True, exist_ok=True)
        (held/Path(f).parent.name/Path(f).name).write_bytes(Path(f).read_bytes())
    enlarge(image_files(path), work, n)
    return path, real

def enlarge(files, work, n):
    "`n` photographs of 12 megapixels with grain, and one of each kind for single answers"
    import numpy as np
    from PIL import Image, ImageChops
    from bearcls.images import load_image
    (work/'full').mkdir()
    grain = Image.fromarray(np.clip(np.random.default_rng(0).normal(128, 6, (3000, 4000, 1)), 0, 255).astype(np.uint8).repeat(3, 2))
    def one(k, dest, size, grainy=True):
        image = load_image(files[k % len(files)]).resize(size, Image.Resampling.BICUBIC)
        if grainy: image = ImageChops.add(image, grain.crop((0, 0, *size)), offset=-128)
        image.save(dest, quality=90)
    with ThreadPoolExecutor(2) as pool: list(pool.map(lambda k: one(k, work/'full'/f'{k:04}.jpg', (4000, 3000)), range(n)))
    one(0, work/'vga.jpg', (640, 480))
    one(0, work/'12mp.jpg', (4000, 3000), False)
    one(0, work/'camera.jpg', (4000, 3000))

def child(work, code):
    "Start a process that runs `code`; its last line, and the seconds from its start to its first line"
    (work/'child.py').write_text(code, encoding='utf-8')
    env = {**os.environ, 'TQDM_DISABLE': '1', 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))}
    env.pop('PYTHONDONTWRITEBYTECODE', None)  # both sides start from compiled modules, as after any first start
    start = time.perf_counter()
    with open(work/'errors', 'w+') as errors, subprocess.Popen([sys.executable, 'child.py'], cwd=work, env=env, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        line = process.stdout.readline()
        seconds, rest = time.perf_counter() - start, process.stdout.read()
    if process.returncode: sys.exit(f'A side failed:\n{(work/"errors").read_text()[-3000:]}')
    return (rest or line).splitlines()[-1], seconds

def measure(work, rounds):
    "All figures of all rounds; the sides take turns in being first"
    for side in head: child(work, head[side] + cold + memory)  # modules are compiled
    runs = []
    for number in range(rounds):
        row = dict(round=number)
        for side in ('bearcls', 'fastai') if number % 2 == 0 else ('fastai', 'bearcls'):
            mb, row[f'cold_{side}'] = child(work, head[side] + cold + memory)
            row[f'resident_mb_{side}'] = float(mb)
            row |= {f'{name}_{side}': s for name, s in json.loads(child(work, head[side] + single)[0]).items()}
        for side in ('bearcls', 'decode', 'fastai') if number % 2 == 0 else ('fastai', 'decode', 'bearcls'):
            row[f'folder_{side}'] = json.loads(child(work, (head.get(side, '')) + folder[side])[0])['seconds']
        print('  '.join(f'{k} {v:.3f}' if isinstance(v, float) else f'{k} {v}' for k, v in row.items()), flush=True)
        runs.append(row)
    return runs

def agreement(work, path, real):
    "How far both sides are apart on equal decodes, and what reduced decoding changes"
    import warnings
    warnings.filterwarnings('ignore')
    from dataclasses import replace
    import numpy as np
    from fastai.vision.all import load_learner
    from bearcls.inference.bundle import read_bundle
    from bearcls.folders import image_files
    from bearcls.inference.classifier import Classifier
    files, bundle = image_files(path), read_bundle(work/'bundle')
    plain, more = files, image_files(shared/'data'/'originals') if real and (shared/'data'/'originals').is_dir() else []
    values = lambda min_side, files: np.array([[r.prediction.probabilities[v] for v in bundle.labels] for r in Classifier(replace(bundle, min_side=min_side)).predict_batch(files, quiet=True)])
    learn = load_learner(work/'export.pkl')
    from fastai.vision.core import PILImage
    from bearcls.images import load_image
    with learn.no_bar():
        dl = learn.dls.test_dl([PILImage(load_image(f)) for f in plain], num_workers=0)
        logits = learn.get_preds(dl=dl, act=lambda x: x)[0].double().numpy()/bundle.temperature
    theirs = np.exp(logits - logits.max(1, keepdims=True))
    whole, small = values(None, [*files, *more]), values(bundle.min_side, [*files, *more])
    moved = np.abs(whole - small).max(1)
    return dict(agreement=float(np.abs(whole[:len(plain)] - theirs/theirs.sum(1, keepdims=True)).max()), moved_max=float(moved.max()), moved_mean=float(moved.mean()),
        labels_changed=int((whole.argmax(1) != small.argmax(1)).sum()), images_compared=len(moved))

def trust(work):
    "How well strangers are told apart, and how well the probabilities keep their promise, on photographs that were held back; nothing for bundles without statistics"
    from bearcls.interpret.calibrate import calibration_error
    from bearcls.inference.classifier import Classifier
    from bearcls.folders import find_images
    from bearcls.interpret.evaluate import evaluate
    classifier = Classifier(work/'bundle')
    out = dict(calibration_error=round(calibration_error(evaluate(classifier, path=work/'held'))['error'], 4), temperature=classifier.bundle.temperature)
    if not classifier.bundle.ood_score: return out
    from bearcls.export.ood import auroc, share_caught
    from bearcls.sample.strangers import draw_strangers
    score = lambda sources: [r.prediction.ood_score for r in classifier.predict_batch(sources, quiet=True)]
    known, strangers = score(find_images(work/'held')), score([image for _, image in draw_strangers(120)])
    return out | dict(auroc=round(auroc(known, strangers), 4), share_caught=round(share_caught(strangers, classifier.bundle.ood_score['threshold']), 4))

def figures(runs):
    "Medians; of ratios within a round"
    ratio = lambda a, b: round(statistics.median(r[a]/r[b] for r in runs), 2)
    out = dict(speedup_cold_start=ratio('cold_fastai', 'cold_bearcls'), speedup_vga=ratio('vga_fastai', 'vga_bearcls'), speedup_12mp=ratio('12mp_fastai', '12mp_bearcls'),
        speedup_camera=ratio('camera_fastai', 'camera_bearcls'), speedup_folder=ratio('folder_fastai', 'folder_bearcls'), share_of_decode_speed=ratio('folder_decode', 'folder_bearcls'))
    for side in ('bearcls', 'fastai'): out[f'resident_mb_{side}'] = round(statistics.median(r[f'resident_mb_{side}'] for r in runs), 1)
    return {**out, 'resident_mb': out['resident_mb_bearcls']}

def main():
    parser = arguments(__doc__, keeps='model and images')
    parser.add_argument('--rounds', type=int, default=3, help='measurements of each side, in turn')
    parser.add_argument('--images', type=int, default=416, help='full-size photographs in the folder; about 4 MB each')
    args = parser.parse_args()
    with working_folder(args.work) as work:
        path, real = prepare(work, args.images)
        if not real: print(f'No photographs and weights in {shared}: drawn images, and a network from nothing')
        runs = measure(work, args.rounds)
        result = {**figures(runs), **agreement(work, path, real), **trust(work), 'images': args.images, 'real': real, 'runs': runs}
    save(result, args.out)

if __name__ == '__main__': main()
