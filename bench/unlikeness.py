"""Telling strangers from bears: the score of `bearcls.unlikeness` beside five others, on the same features

python bench/unlikeness.py --out unlikeness.json [--photographs FOLDER] [--seeds 5]

Bears are the photographs of BEARCLS_SHARED (default ../shared; otherwise drawn ones), and with its weights the network is squeezenet1_1 with a head on frozen features.
Strangers are drawn things, drawn patterns, and photographs without bears: those that scikit-learn and matplotlib bring as examples, or all of FOLDER; of each also three parts.
The published table was made with 51 test pictures from scikit-image, foolbox, gradio, imgaug, ultralytics, scikit-learn and matplotlib, unpacked into one folder.
Each seed is another split. Every score's threshold is chosen by held-back bears for 5% false alarms; `false_alarms` is measured on the other half of them, a hundred times."""
import argparse, json, os, tempfile
from pathlib import Path
import numpy as np
from bearcls.core import load_image
from bearcls.folders import image_files
from bearcls.interpret import evaluate
from bearcls.sample import draw_bears
from bearcls.train import train
from bearcls.unlikeness import alarm_threshold, draw_strangers, fit_unlikeness, measure_unlikeness, stranger_kinds

def photographs(folder):
    "Pictures without bears: of a folder, or the examples of two packages"
    if folder: return sorted(f for f in Path(folder).iterdir() if f.is_file())
    import matplotlib, sklearn.datasets
    found = [Path(sklearn.datasets.__file__).parent/'images'/n for n in ('china.jpg', 'flower.jpg')] + [Path(matplotlib.get_data_path())/'sample_data'/'grace_hopper.jpg']
    return [f for f in found if f.is_file()]

def parts(image, rng):
    "Three parts of a picture"
    for share in rng.uniform(.5, .8, 3):
        w, h = int(image.width*share), int(image.height*share)
        x, y = int(rng.integers(image.width - w + 1)), int(rng.integers(image.height - h + 1))
        yield image.crop((x, y, x + w, y + h))

def write_strangers(dest, folder, label):
    "Folders of strangers by kind, filed under a label so that they can be asked about"
    whole, rng = [load_image(f) for f in photographs(folder)], np.random.default_rng(0)
    for image in whole: image.thumbnail((512, 512))
    kinds = {'photographs': whole, 'parts of them': [p for image in whole for p in parts(image, rng)],
        'drawn things': [im for _, im in draw_strangers(90, kinds=['thing'])], 'patterns': [im for _, im in draw_strangers(60, kinds=stranger_kinds[1:])]}
    for kind, images in kinds.items():
        (dest/kind/label).mkdir(parents=True)
        for i, image in enumerate(images): image.save(dest/kind/label/f'{i:03}.png')
    return list(kinds)

def nearest(features, others, k=5):
    "One minus the mean cosine of the k nearest"
    def unit(a): return a/np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-9)
    return 1 - np.sort(unit(features) @ unit(others).T, 1)[:, -k:].mean(1)

def mahalanobis(x, targets, p=64):
    "Smallest distance to a label's mean, with a common covariance, in the first p directions"
    mean = x.mean(0)
    directions = np.linalg.svd(x - mean, full_matrices=False)[2][:p].T
    z = (x - mean) @ directions
    means = np.stack([z[targets == t].mean(0) for t in np.unique(targets)])
    inverse = np.linalg.pinv(np.cov((z - means[targets]).T) + 1e-3*np.cov(z.T).trace()/z.shape[1]*np.eye(z.shape[1]))
    def score(seen):
        q = (seen.features - mean) @ directions
        return np.min([np.einsum('ij,jk,ik->i', q - m, inverse, q - m) for m in means], 0)
    return score

def scores(learn, bears):
    "Each score as a function of an Evaluation, fitted to training bears"
    inside, held = bears.only('train'), bears.only('valid')
    x = inside.features
    w, b = next((m.weight.detach().cpu().numpy(), m.bias.detach().cpu().numpy()) for m in learn.model.modules() if hasattr(m, 'out_features') and m.out_features == len(bears.labels))
    def energy(seen): return -np.log(np.exp(seen.features @ w.T + b).sum(1)) if x.shape[1] == w.shape[1] else np.full(len(seen), np.nan)
    fitted, origin = fit_unlikeness(x, inside.targets, held.features), x.min(0)
    return {'top probability': lambda s: 1 - s.probabilities.max(1), 'energy': energy, 'Mahalanobis, 64 directions': mahalanobis(x, inside.targets),
        'neighbours, from the mean': lambda s: nearest(s.features - x.mean(0), x - x.mean(0)), 'neighbours, from nothing': lambda s: nearest(s.features - origin, x - origin),
        'unlikeness': lambda s: fitted.score(s.features)}

def halves(known):
    "Share of false alarms on one half, with the threshold from the other"
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(known))
        yield (known[order[len(known)//2:]] > alarm_threshold(known[order[:len(known)//2]])[0]).mean()

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path)
    parser.add_argument('--photographs', help='folder of pictures without bears')
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    shared, tmp, found = Path(os.environ.get('BEARCLS_SHARED', '../shared')), Path(tempfile.mkdtemp()), {}
    path = shared/'data'/'bears' if (shared/'data'/'bears').is_dir() else draw_bears(tmp/'bears', n_per_label=140, faults=False)
    if (shared/'torch').is_dir(): os.environ['TORCH_HOME'] = str(shared/'torch')
    how = dict(route='fast', arch='squeezenet1_1') if (shared/'torch').is_dir() else dict(route='scratch')
    kinds = write_strangers(tmp/'strangers', args.photographs, image_files(path)[0].parent.name)
    for seed in range(args.seeds):
        learn = train(path, **how, seed=seed, quiet=True)
        bears, strangers = evaluate(learn, 'all'), {kind: evaluate(learn, path=tmp/'strangers'/kind) for kind in kinds}
        for name, score in scores(learn, bears).items():
            known = score(bears.only('valid'))
            for row in measure_unlikeness(known, {kind: score(s) for kind, s in strangers.items()}): found.setdefault((name, row['kind']), []).append((row['auroc'], row['caught'], row['n']))
            found.setdefault((name, 'false alarms'), []).extend(halves(known))
    rows = [dict(score=name) | {kind: dict(auroc=np.mean([f[0] for f in found[name, kind]]), caught=np.mean([f[1] for f in found[name, kind]]), n=found[name, kind][0][2]) for kind in kinds}
        | dict(false_alarms=float(np.mean(found[name, 'false alarms']))) for name in dict.fromkeys(n for n, _ in found)]
    print(f'{"":28}' + ''.join(f'{kind:>18}' for kind in kinds) + '   false alarms')
    for r in rows: print(f'{r["score"]:28}' + ''.join(f'{r[k]["auroc"]:11.3f} {r[k]["caught"]:5.0%} ' for k in kinds) + f'{r["false_alarms"]:11.1%}')
    if args.out: args.out.write_text(json.dumps(dict(arch=learn.plan.arch, seeds=args.seeds, rows=rows), indent=1), encoding='utf-8')

if __name__ == '__main__': main()
