"""Folders of many images: how time and memory of checking and training grow, what evaluation adds, and company on the machine

python bench/folders.py --out folders.json [--only NAME ...] [--few 5000] [--many 40000] [--rounds 3] [--keep FOLDER]

growth, bytes_per_image   exponent of the time of `check_images` from the few files to the many, and the memory that each further image costs
train_bytes_per_image     the same slope of memory for `image_dls`, `fit_fast` with SqueezeNet 1.1 at 224 pixels, and `evaluate(learn, 'all')`
evaluate_share            seconds of `evaluate(learn, 'all')` over those of `fit_fast` before it, on 2,000 images; median of the rounds
company_loss              seconds of `fit_fast` beside one busy process of the lowest priority over those alone, on whole photographs;
                          median of the rounds, which take turns

The images are crops of the photographs in BEARCLS_SHARED (default ../shared; otherwise of drawn bears), 128 by 128 pixels in three
labels, each crop saved on its own, so none is a copy of another file. Every measurement runs in a process of its own with its imports
done and an empty cache; memory is the most that this process held. A slope is what the images beyond the first few cost, each: it leaves
out what is paid once. Weights are those of TORCH_HOME, or of BEARCLS_SHARED; without any, the body begins with random ones, which cost
the same seconds and bytes."""
import json, math, os, random, statistics, subprocess, sys, tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
head = '''
import json, os, resource, sys, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)  # bytes
'''
foot = '''
if __name__ == '__main__':
    start = time.perf_counter()
    found = work(*sys.argv[1:])
    print(json.dumps(dict(seconds=time.perf_counter() - start, peak_bytes=peak(), found=found)))
'''
sides = {  # What runs in the fresh process, by name: `work` gets the arguments of `run` as text
'check': '''
from bearcls.verify.report import check_images
def work(path): return check_images(path).counts
''',
'train': '''
from fastai.vision.all import error_rate, set_seed, vision_learner
from torchvision.models import squeezenet1_1
from bearcls.data.loaders import image_dls
from bearcls.interpret.evaluate import evaluate
import bearcls.train.fast
def work(path, pretrained, ask):
    set_seed(42)
    learn = vision_learner(image_dls(path, recipe='squish'), squeezenet1_1, pretrained=pretrained == 'True', metrics=error_rate)
    start = time.perf_counter()
    learn.fit_fast()
    trained = time.perf_counter()
    n = len(evaluate(learn, 'all')) if ask == 'True' else 0
    return dict(fit=trained - start, evaluate=time.perf_counter() - trained, n=n)
''',
}

def run(side, *arguments):
    "One side in a fresh process: seconds, most bytes held, and what it found"
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp)/'child.py').write_text(head + sides[side] + foot)
        env = {**os.environ, 'TQDM_DISABLE': '1', 'BEARCLS_CACHE': tmp, 'PYTHONPATH': str(root)}
        for variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): env.pop(variable, None)
        if home := weights_home(): env['TORCH_HOME'] = str(home)
        command = [sys.executable, Path(tmp)/'child.py', *map(str, arguments)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{side} failed:\n{done.stderr}')
    return dict(side=side, **json.loads(done.stdout.splitlines()[-1]))

def shared(): return Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared')).resolve()

def weights_home():
    "The folder with SqueezeNet's weights; None if there is none"
    homes = [Path(h) for h in (os.environ.get('TORCH_HOME'), shared()/'torch') if h]
    return next((h for h in homes if list(h.glob('hub/checkpoints/squeezenet1_1-*.pth'))), None)

def cut(dest, side, job):
    "Some crops of one photograph"
    from PIL import Image
    file, numbers = job
    with Image.open(file) as image: image = image.convert('RGB')
    for n in numbers:
        rng = random.Random(n)
        part = rng.uniform(.25, .6)*min(image.size)
        left, top = rng.uniform(0, image.width - part), rng.uniform(0, image.height - part)
        crop = image.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + part, top + part))
        crop.save(dest/file.parent.name/f'{n:06d}.jpg', quality=90)

def make_crops(photos, dest, n, side=128):
    "`n` crops of photographs in the labels of these; a folder that is there already is used as it is"
    from bearcls.folders import image_files
    files = image_files(photos)
    for label in {f.parent.name for f in files}: (dest/label).mkdir(parents=True, exist_ok=True)
    missing = sorted(set(range(n)) - {int(f.stem) for f in image_files(dest)})
    jobs = [(f, [n for n in missing if n % len(files) == k]) for k, f in enumerate(files)]
    with ProcessPoolExecutor(os.cpu_count()) as pool: list(pool.map(partial(cut, dest, side), jobs))
    return dest

def growth(args, photos, few, many):
    "Exponent of the time of `check_images`, and what each further image takes of memory"
    runs = [dict(files=n, **run('check', path)) for n, path in ((args.few, few), (args.many, many))]
    seconds, peaks = ({n: statistics.median(r[figure] for r in runs if r['files'] == n) for n in (args.few, args.many)} for figure in ('seconds', 'peak_bytes'))
    return dict(growth=round(math.log(seconds[args.many]/seconds[args.few])/math.log(args.many/args.few), 3),
        bytes_per_image=round((peaks[args.many] - peaks[args.few])/(args.many - args.few)),
        seconds_few=round(seconds[args.few], 1), seconds_many=round(seconds[args.many], 1), runs=runs)

def train(args, photos, few, many):
    "What each further image takes of memory in training and evaluation"
    runs = [dict(files=n, **run('train', path, bool(weights_home()), True)) for n, path in ((args.few, few), (args.many, many))]
    slope = (runs[1]['peak_bytes'] - runs[0]['peak_bytes'])/(runs[1]['found']['n'] - runs[0]['found']['n'])
    return dict(train_bytes_per_image=round(slope), runs=runs)

def evaluation(args, photos, few, many, n=2000):
    "What asking about all images costs after a training"
    path = make_crops(photos, many.parent/str(n), n)
    runs = [run('train', path, bool(weights_home()), True) for _ in range(args.rounds)]
    return dict(evaluate_share=round(statistics.median(r['found']['evaluate']/r['found']['fit'] for r in runs), 4), runs=runs)

def company(args, photos, few, many):
    "What a busy process of the lowest priority costs"
    runs = []
    for _ in range(args.rounds):
        alone = run('train', photos, bool(weights_home()), False)
        busy = subprocess.Popen([sys.executable, '-c', 'import os; os.nice(19)\nwhile True: pass'])
        try: beside = run('train', photos, bool(weights_home()), False)
        finally:
            busy.kill()
            busy.wait()
        runs.append(dict(alone=alone, beside=beside))
    losses = [r['beside']['found']['fit']/r['alone']['found']['fit'] for r in runs]
    return dict(company_loss=round(statistics.median(losses), 2), runs=runs)

# By name: functions of the arguments, the photographs and the two folders of crops, which return figures and `runs`
measurements = {'growth': growth, 'train': train, 'evaluation': evaluation, 'company': company}
targets = {'growth': 1.15, 'bytes_per_image': 1000, 'train_bytes_per_image': 10_000, 'evaluate_share': .05, 'company_loss': 2}  # At most

def main():
    parser = arguments(__doc__)
    parser.add_argument('--only', nargs='+', choices=measurements, default=list(measurements), help='measurements to make; all by default')
    parser.add_argument('--few', type=int, default=5000, help='files in the smaller folder')
    parser.add_argument('--many', type=int, default=40_000, help='files in the larger folder')
    parser.add_argument('--rounds', type=int, default=3, help='of evaluation and company')
    parser.add_argument('--keep', type=Path, help='keep the folders of crops here, and use those that are here')
    args = parser.parse_args()
    if not 0 < args.few < args.many: parser.error('--few must be above 0 and below --many')
    with tempfile.TemporaryDirectory() as tmp:
        photos, crops = shared()/'data'/'bears', args.keep or Path(tmp)/'crops'
        if not photos.is_dir():
            print(f'No photographs in {photos}: crops of drawn bears are checked')
            from bearcls.sample.bears import draw_bears
            photos = draw_bears(Path(tmp)/'drawn', n_per_label=139, side=512, faults=False)
        folders = [make_crops(photos, crops/str(n), n) for n in (args.few, args.many)]
        result = {'files': [args.few, args.many], 'runs': {}}
        for name in args.only:
            figures = measurements[name](args, photos, *folders)
            result['runs'][name] = figures.pop('runs')
            result |= figures
            for k, v in figures.items(): print(f'{k:24}{v:>12}' + (f'   at most {targets[k]:g}' if k in targets else ''), flush=True)
    save(result, args.out, quiet=True)

if __name__ == '__main__': main()
