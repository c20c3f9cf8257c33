"""What training costs beside its seconds: memory for each image, evaluation after it, and company on the machine

python bench/folders_training.py --out folders_training.json [--counts 5000,40000] [--rounds 3]

train_bytes_per_image  slope of the peak memory of a fresh process that trains on a folder of 128x128 images (`fit_fast`, SqueezeNet 1.1 at 224 pixels) and then
                       asks `evaluate(learn, 'all')`, between the two counts
evaluate_share         seconds of `evaluate(learn, 'all')` over those of `learn.fit_fast()`, on 2,000 such images with an empty cache; median of the rounds
company_loss           seconds of `learn.fit_fast()` beside one busy process of the lowest priority over those alone, on 416 photographs with an
                       empty cache; median of the rounds, which take turns

The images are crops of the photographs in BEARCLS_SHARED (default ../shared), or of drawn bears where there are none. The weights are those of TORCH_HOME, or of
BEARCLS_SHARED; where neither has any, the body begins with random weights, which cost the same seconds and bytes."""
import argparse, json, os, random, statistics, subprocess, sys, tempfile, time
from pathlib import Path

root = Path(__file__).resolve().parents[1]
shared = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared')).resolve()
n_share, name = 2000, 'squeezenet1_1'

child = '''
import json, sys, time, warnings
warnings.filterwarnings('ignore')
import resource, torch
from fastai.vision.all import error_rate, set_seed, vision_learner
from torchvision.models import squeezenet1_1
from bearcls.data import image_dls
from bearcls.interpret import evaluate
import bearcls.fast
path, pretrained, ask = sys.argv[1], bool(int(sys.argv[2])), bool(int(sys.argv[3]))
set_seed(42)
begin = time.perf_counter()
dls = image_dls(path, size=224, recipe='squish', **json.loads(sys.argv[4]))
learn = vision_learner(dls, squeezenet1_1, pretrained=pretrained, metrics=error_rate)
start = time.perf_counter()
learn.fit_fast()
trained = time.perf_counter()
seen = evaluate(learn, 'all') if ask else None
end = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
print(json.dumps(dict(whole=trained - begin, fit=trained - start, evaluate=end - trained, peak=peak, n=len(dls.train_ds) + len(dls.valid_ds))))
'''

def photographs(folder):
    "Photographs in label folders: those of BEARCLS_SHARED, else drawn bears"
    own = shared/'data'/'bears'
    if own.is_dir(): return own
    from bearcls.sample import draw_bears
    return draw_bears(folder/'bears', n_per_label=140, faults=False)

def crops(folder, n, seed=0, side=128):
    "An image folder of `n` crops of photographs, each different"
    from PIL import Image
    rng = random.Random(seed)
    files = sorted(f for f in photographs(folder).rglob('*') if f.suffix.lower() in ('.jpg', '.png'))
    out = folder/f'crops-{n}'
    opened = {}
    for i in range(n):
        file = files[i % len(files)]
        if file not in opened: opened[file] = Image.open(file).convert('RGB').resize((320, 320))
        x, y = rng.randrange(320 - side), rng.randrange(320 - side)
        (out/file.parent.name).mkdir(parents=True, exist_ok=True)
        opened[file].crop((x, y, x + side, y + side)).save(out/file.parent.name/f'{i:06d}.jpg', quality=85)
    return out

def weights_home():
    "The folder with SqueezeNet's weights; None if there is none"
    homes = [Path(os.environ['TORCH_HOME'])] if 'TORCH_HOME' in os.environ else []
    found = [h for h in [*homes, shared/'torch'] if list(h.glob(f'hub/checkpoints/{name}-*.pth'))]
    return found[0] if found else None

def fresh(path, ask=True, **settings):
    "Train and evaluate in a new process with an empty cache; its figures"
    home = weights_home()
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, 'BEARCLS_CACHE': cache, 'TQDM_DISABLE': '1', 'PYTHONPATH': str(root), **({'TORCH_HOME': str(home)} if home else {})}
        for variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): env.pop(variable, None)
        command = [sys.executable, '-c', child, str(path), str(int(home is not None)), str(int(ask)), json.dumps(settings)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f'training on {path} failed:\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])

def train_bytes_per_image(folder, counts=(5000, 40000)):
    "Bytes of peak memory that each further image costs, and the runs"
    runs = [fresh(crops(folder, n), near_copies=False) for n in counts]
    first, last = runs[0], runs[-1]
    return (last['peak'] - first['peak'])/(last['n'] - first['n']), runs

def evaluate_share(folder, rounds=3, n=n_share):
    "Seconds of `evaluate(learn, 'all')` over those of `fit_fast`, and the runs"
    path = crops(folder, n)
    runs = [fresh(path, near_copies=False) for _ in range(rounds)]
    return statistics.median(r['evaluate']/r['fit'] for r in runs), runs

def company_loss(folder, rounds=3):
    "Seconds of `fit_fast` beside one busy process of the lowest priority over those alone, and the runs"
    path, runs = photographs(folder), []
    for _ in range(rounds):
        alone = fresh(path, ask=False)
        busy = subprocess.Popen([sys.executable, '-c', 'import os; os.nice(19)\nwhile True: pass'])
        try: beside = fresh(path, ask=False)
        finally:
            busy.kill()
            busy.wait()
        runs.append(dict(alone=alone['fit'], beside=beside['fit'], alone_whole=alone['whole'], beside_whole=beside['whole']))
    return statistics.median(r['beside']/r['alone'] for r in runs), runs

def main():
    parser = argparse.ArgumentParser(description='What training costs beside its seconds')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    parser.add_argument('--counts', default='5000,40000', help='images in the two folders of train_bytes_per_image; empty leaves it out')
    parser.add_argument('--rounds', type=int, default=3, help='of evaluate_share and company_loss; 0 leaves them out')
    args = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        if args.counts: result['train_bytes_per_image'] = train_bytes_per_image(folder, [int(n) for n in args.counts.split(',')])
        if args.rounds:
            result['evaluate_share'] = evaluate_share(folder, args.rounds)
            result['company_loss'] = company_loss(folder, args.rounds)
    figures = {k: round(v, 4) for k, (v, _) in result.items()}
    print(json.dumps({**figures, 'runs': {k: runs for k, (_, runs) in result.items()}}, indent=1))
    if args.out: args.out.write_text(json.dumps({**figures, 'runs': {k: runs for k, (_, runs) in result.items()}}, indent=1) + '\n', encoding='utf-8')

if __name__ == '__main__': main()
