"""What the weights of drawn images are worth: errors beside training from nothing and beside ImageNet weights

python bench/backbone.py --out backbone.json [--seeds 10] [--sets photographs,drawn,digits] [--variants scratch,drawn]

Every seed cuts another fifth off for validation, with near duplicates on one side; all variants see the same splits. The interval of a difference is
that of repeated splits (Nadeau and Bengio), at 95%. The plan of the route drawn was chosen on seeds 0 to 3 of the photographs, so the seeds begin with 10.

photographs  416 bears from the web (BEARCLS_SHARED, default ../shared)
drawn        the project's drawn bears, 120 of each label
digits       scikit-learn's handwritten digits, 60 of each

scratch      xresnet18_thin from random weights, 20 epochs at 64 pixels: what `train` did before there were weights of drawn images
drawn        from the weights that come with bearcls, with the plan of `train`: 8 to 30 epochs at 64 pixels
imagenet     the route fast with SqueezeNet 1.1's ImageNet weights (of BEARCLS_SHARED)"""
import os, sys, tempfile, warnings
from pathlib import Path
from common import arguments, save

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))
shared = Path(os.environ.get('BEARCLS_SHARED', root/'..'/'shared')).resolve()
variants = dict(scratch=dict(route='scratch'), drawn=dict(route='drawn'), imagenet=dict(route='fast', arch='squeezenet1_1'))

def digits(dest):
    "60 of each digit, dark on white, 64 pixels wide"
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    data = load_digits()
    for digit in range(10):
        (dest/f'{digit}').mkdir(parents=True)
        for i in np.flatnonzero(data.target == digit)[:60]:
            Image.fromarray((255 - data.images[i]*15.9).astype('uint8')).resize((64, 64), Image.BICUBIC).save(dest/f'{digit}'/f'{i}.png')
    return dest

def folder(name, work):
    "An image folder; None where it is not to be had"
    from bearcls.sample.bears import draw_bears
    if name == 'drawn': return draw_bears(work/'drawn', n_per_label=120, seed=5, faults=False)
    if name == 'digits': return digits(work/'digits')
    photographs = shared/'data'/'bears'
    return photographs if photographs.is_dir() else None

def main():
    parser = arguments(__doc__)
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--sets', default='photographs,drawn,digits')
    parser.add_argument('--variants', default=','.join(variants))
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    os.environ['TORCH_HOME'] = str(shared/'torch')
    from bearcls.train.experiment import experiment
    chosen = {name: variants[name] for name in args.variants.split(',')}
    if not (shared/'torch').is_dir(): chosen.pop('imagenet', None)
    result, runs = {}, []
    for name in args.sets.split(','):
        with tempfile.TemporaryDirectory() as work:
            path = folder(name, Path(work))
            if path is None:
                print(f'No {name} in {shared}: left out')
                continue
            tried = experiment(path, chosen, seeds=range(10, 10 + args.seeds))
        table = tried.compare()
        print(name, table.to_string(), sep='\n', flush=True)
        result |= {f'{name}_{row["variant"]}': row for row in table.to_dict('records')}
        runs += [dict(vars(run), set=name) for run in tried.rows]
    save({**result, 'runs': runs}, args.out, quiet=True)

if __name__ == '__main__': main()
