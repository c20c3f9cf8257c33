"""Training on 416 photographs: bearcls beside the book's recipe, on the same splits, in turn

python bench/train.py --out train.json [--rounds 3] [--sides book,fit_fast] [--scratch-rounds 3]

The photographs and SqueezeNet 1.1's ImageNet weights are those of BEARCLS_SHARED (default ../shared); without them only the training from nothing is
measured. Every side runs in a process of its own with its imports done, from the folder to the trained Learner. In each round all sides see one split,
stratified and with copies together, made with the round's number as its seed:

book       the chapter's DataBlock and fine_tune(4): fastai's own decoding, four-byte numbers, no cache
fit_fast   train(route='fast') with an empty cache
retrain    the same once more, in a new process, from the cache that it left
fine_tune  train(route='fine_tune', epochs=4, recipe='random_crop', min_scale=0.5): the book's epochs and transforms, on opened images that are kept, with
           the memory format and precision that suit the processor
cache      the book's recipe once more, with nothing changed but that opened images are kept

An epoch's seconds are those of the epochs that train all layers, without the first of them. Errors and log losses are of each Learner's own `validate`."""
import json, os, statistics, subprocess, sys, tempfile
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
shared = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared')).resolve()
head = '''
import json, sys, time, warnings
warnings.filterwarnings('ignore')
from pathlib import Path
from fastai.vision.all import *
from torchvision.models import squeezenet1_1
'''
foot = '''
if __name__ == '__main__':
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    prepared, start = before(path, seed), time.perf_counter()
    learn, epochs = work(path, seed, prepared)
    seconds = time.perf_counter() - start
    with learn.no_bar(), learn.no_logging(): loss, error = learn.validate()
    print(json.dumps(dict(seconds=seconds, error=error, log_loss=loss, epochs=epochs, n_train=len(learn.dls.train_ds), n_valid=len(learn.dls.valid_ds))))
'''
ours = '''
from bearcls.train.learner import train
def before(path, seed): pass
def work(path, seed, prepared):
    learn = train(path, seed=seed, quiet=True, %s)
    return learn, [r['seconds'] for r in learn.training_log.rows]
'''
seconds = '''
from bearcls.data.loaders import image_dls
class Seconds(Callback):
    def before_fit(self): self.rows = getattr(self, 'rows', [])
    def before_epoch(self): self.start = time.perf_counter()
    def after_epoch(self): self.rows.append(time.perf_counter() - self.start)
def tune(dls):
    learn = vision_learner(dls, squeezenet1_1, metrics=error_rate, cbs=Seconds())
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(4)
    return learn, learn.seconds.rows
'''
sides = {
'book': seconds + '''
def before(path, seed):
    "The files of the round's split"
    valid = {str(f) for f in image_dls(path, size=32, seed=seed, cache=False).valid_ds.items}
    set_seed(seed)
    return valid
def work(path, seed, valid):
    bears = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=FuncSplitter(lambda f: str(f) in valid), get_y=parent_label,
        item_tfms=RandomResizedCrop(224, min_scale=0.5), batch_tfms=aug_transforms())
    return tune(bears.dataloaders(path))
''',
'cache': seconds + '''
def before(path, seed): set_seed(seed)
def work(path, seed, prepared): return tune(image_dls(path, seed=seed, recipe='random_crop', min_scale=.5))
''',
'fit_fast': ours % "route='fast', arch='squeezenet1_1'",
'retrain': ours % "route='fast', arch='squeezenet1_1'",
'fine_tune': ours % "route='fine_tune', arch='squeezenet1_1', epochs=4, recipe='random_crop', min_scale=.5",
'scratch': '''
from bearcls.train.learner import train
from bearcls.verify.report import broken_issues, check_images
def before(path, seed): return check_images(path).files(*broken_issues)
def work(path, seed, broken):
    learn = train(path, seed=seed, route='scratch', exclude=broken, quiet=True)
    return learn, [r['seconds'] for r in learn.training_log.rows]
'''}

def run(side, path, seed, cache):
    "One side in a fresh process"
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp)/'child.py').write_text(head + sides[side] + foot)
        env = {**os.environ, 'TQDM_DISABLE': '1', 'TORCH_HOME': str(shared/'torch'), 'BEARCLS_CACHE': str(cache), 'PYTHONWARNINGS': 'ignore'}
        done = subprocess.run([sys.executable, Path(tmp)/'child.py', str(path), str(seed)], env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{side} failed:\n{done.stderr}')
    row = dict(side=side, round=seed, **json.loads(done.stdout.splitlines()[-1]))
    print(f'{seed:>3}  {side:10}{row["seconds"]:>8.2f} s   error {row["error"]:6.1%}   log loss {row["log_loss"]:.4f}', flush=True)
    return row

def photographs(rounds, order):
    "All sides, in turn; every round begins with an empty cache"
    runs = []
    for seed in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for side in order if seed % 2 == 0 else [*order[1:], order[0]]: runs.append(run(side, shared/'data'/'bears', seed, cache))
    return runs

def drawn(rounds):
    "Training from nothing, on the drawn set with its faults, without the files that cannot be opened"
    from bearcls.sample.bears import draw_bears
    with tempfile.TemporaryDirectory() as tmp:
        path = draw_bears(Path(tmp)/'bears')
        return [run('scratch', path, seed, Path(tmp)/'cache') for seed in range(42, 42 + rounds)]

def figures(runs):
    "Medians of the times and of their ratios within a round; means and standard deviations of the errors"
    of = lambda side: [r for r in sorted(runs, key=lambda r: r['round']) if r['side'] == side]
    ratio = lambda a, b, what: round(statistics.median(what(x)/what(y) for x, y in zip(of(a), of(b))), 2)
    seconds, epoch = (lambda r: r['seconds']), (lambda r: statistics.mean(r['epochs'][2:]))
    out = {}
    for side in dict.fromkeys(r['side'] for r in runs):
        out[f'seconds_{side}'] = round(statistics.median(map(seconds, of(side))), 2)
        for what in ('error', 'log_loss'):
            values = [r[what] for r in of(side)]
            out[f'{what}_{side}'] = round(statistics.mean(values), 4)
            if len(values) > 1: out[f'{what}_{side}_sd'] = round(statistics.stdev(values), 4)
    if of('book'):
        compared = dict(speedup_fit_fast=('fit_fast', seconds), speedup_retrain=('retrain', seconds), speedup_epoch=('fine_tune', epoch), speedup_epoch_cache_alone=('cache', epoch))
        out |= {name: ratio('book', side, what) for name, (side, what) in compared.items() if of(side)}
    return out

def main():
    parser = arguments(__doc__)
    parser.add_argument('--rounds', type=int, default=3, help='splits of the photographs')
    parser.add_argument('--sides', default='book,fit_fast,retrain,fine_tune,cache', help='of the photographs, with commas; fit_fast before those that use its cache')
    parser.add_argument('--scratch-rounds', type=int, default=3, help='seeds of the training from nothing; 0 leaves it out')
    args = parser.parse_args()
    there = (shared/'data'/'bears').is_dir() and (shared/'torch').is_dir()
    if not there: print(f'No photographs and weights in {shared}: only the training from nothing is measured')
    runs = (photographs(args.rounds, args.sides.split(',')) if there and args.rounds else []) + drawn(args.scratch_rounds)
    result = {**figures(runs), 'runs': runs}
    save(result, args.out)

if __name__ == '__main__': main()
