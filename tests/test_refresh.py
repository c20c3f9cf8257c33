"""Refresh: what makes bad reading in a notebook

Many seeds, a year of refreshes, programs that are killed at any moment, two at once, damaged memory, and a real training.
"""
import json, math, os, random, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest

pytest.importorskip('sqlalchemy', reason='sqlalchemy is not installed')
pytest.importorskip('onnx', reason='onnx is not installed')
from PIL import Image
from bearcls.core import DataError, sha256
from bearcls.inference.bundle import Bundle, write_bundle
from bearcls.monitor.accuracy import ReviewRule
from bearcls.monitor.log import LogRow, PredictionLog, Verdict
from bearcls.intervals import chance_of
from bearcls.rollout.refresh import CheckedImage, checked_images, compare_models, divide, prune_models, refresh, train_bundle
from bearcls.rollout.registry import Registry, RegistryError
from bearcls.sample.standins import fit_pixels

start, day = 1767225600, 86400  # 2026-01-01
labels = ['black', 'grizzly']

# ---------------------------------------------------------------- chance

def test_chance_is_the_exact_test_of_mcnemar():
    stats = pytest.importorskip('scipy.stats')
    for lost, won in [(0, 1), (3, 3), (9, 2), (40, 60), (60, 40)]:
        wanted = stats.binomtest(lost, lost + won, .5, 'greater').pvalue
        assert chance_of([2.]*lost + [-2.]*won) == pytest.approx(wanted)

@pytest.mark.parametrize('n', [8, 40])
def test_chance_with_weights_is_no_smaller_than_it_says(n):
    "Under equally good models, below 0.05 in at most 5% of the runs: by enumeration, and by drawing"
    rng = np.random.default_rng(n)
    found = [chance_of(rng.choice([1, 2.5, 7], n)*rng.choice([-1, 1], n)) for _ in range(400)]
    assert np.mean(np.array(found) <= .05) <= .05 + 3*math.sqrt(.05*.95/400)
    assert chance_of(np.linspace(1, 2, n)) <= .004

# ---------------------------------------------------------------- comparisons

class Answers:
    "A model that gives the labels it is told"
    def __init__(self, said): self.said = said
    def predict_batch(self, files, quiet=False): return [SimpleNamespace(prediction=SimpleNamespace(label=self.said[str(f)])) for f in files]

def simulated(rng, n, champion, challenger, chosen=.05):
    "Held-back images, and two models with these probabilities of error (one each, or one for each image)"
    truth = rng.choice(labels, n)
    images = [CheckedImage(Path(str(i)), truth[i], f'{i:064}', str(rng.choice(['gate', 'pond', 'hut'])), start + day*i, np.broadcast_to(chosen, n)[i])
        for i in range(n)]
    wrong = [rng.random(n) < e for e in (champion, challenger)]
    other = dict(zip(labels, labels[::-1]))
    models = [Answers({str(i): other[truth[i]] if w[i] else truth[i] for i in range(n)}) for w in wrong]
    return images, models

def test_equal_models_are_called_worse_anywhere_in_at_most_5_percent():
    "Eight groups looked at in each comparison"
    rng = np.random.default_rng(1)
    worse = 0
    for _ in range(300):
        images, models = simulated(rng, 200, .12, .12)
        worse += bool(compare_models(*models, images).worse)
    assert worse/300 <= .05 + 3*math.sqrt(.05*.95/300)

def test_one_bad_place_is_found_beside_a_better_whole():
    rng = np.random.default_rng(2)
    images, _ = simulated(rng, 300, .1, .1)
    at_pond = np.array([i.place == 'pond' for i in images])
    images_again, models = simulated(np.random.default_rng(2), 300, .2, np.where(at_pond, .5, .01))
    found = compare_models(*models, images_again)
    assert found.groups[0].challenger < found.groups[0].champion and 'place: pond' in found.worse and 'all' not in found.worse

def test_intervals_of_the_difference_hold():
    "95% intervals of the whole, with equal and with different weights"
    for seed, chosen in ((3, .05), (4, (.05, .2)), (5, (.05, 1))):
        rng = np.random.default_rng(seed)
        held = 0
        for _ in range(200):
            q = rng.choice(chosen, 150) if isinstance(chosen, tuple) else chosen
            images, models = simulated(rng, 150, .2, .1, q)
            g = compare_models(*models, images).groups[0]
            held += g.low <= -.1 <= g.high
        assert held/200 >= .91

def test_images_chosen_because_of_doubt_do_not_bias_the_errors():
    "Doubtful answers are wrong more often and reviewed more often; weighting puts that right"
    rng = np.random.default_rng(5)
    rule = ReviewRule(budget=.1, usual=.25, even=.5)
    plain = []
    weighted = []
    for _ in range(60):
        doubtful = rng.random(4000) < .1
        error = np.where(doubtful, .5, .03)
        q = rule.probability(~doubtful, np.where(doubtful, .5, .97))
        images, models = simulated(rng, 4000, error, error, q)
        reviewed = [i for i, u in zip(images, rng.random(4000)) if u < i.chosen]
        found = compare_models(*models, reviewed).groups[0]
        weighted.append(found.champion - error.mean())
        plain.append(np.mean([models[0].said[str(i.file)] != i.label for i in reviewed]) - error.mean())
    assert abs(np.mean(weighted)) < 4*np.std(weighted)/math.sqrt(60) + .002 and np.mean(plain) > .04

def test_images_that_cannot_be_opened_are_counted():
    images, models = simulated(np.random.default_rng(6), 10, .1, .1)
    models[0].predict_batch = lambda files, quiet=False: [SimpleNamespace(prediction=None)]*len(files)
    found = compare_models(*models, images)
    assert found.failed == 10 and not found.groups and found.words == 'no image could be compared'
    assert compare_models(*models, []).groups == []

# ---------------------------------------------------------------- a year of images

def noise_image(seed, animal):
    "An image unlike all others, lighter for grizzlies"
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 120, (6, 8, 3)) + (80 if animal == 'grizzly' else 0)
    return Image.fromarray(rough.astype(np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)

def put(folder, animal, name, image):
    file = folder/animal/f'{name}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file

def trainer(division, dest):
    names = sorted({i.label for i in division.train})
    model = fit_pixels([Image.open(i.file) for i in division.train], [i.label for i in division.train], names, steps=60)
    write_bundle(Bundle(names, (64, 64)), model, dest, '# Campsite')

def site_of(tmp_path, n_old=20, n_new=100, rule=ReviewRule(.9, even=1)):
    "An image folder with old and reviewed images, a registry with a champion, and a log"
    folder = tmp_path/'bears'
    for i in range(n_old): put(folder, labels[i % 2], f'old-{i}', noise_image(i, labels[i % 2]))
    log = PredictionLog(tmp_path/'log.sqlite')
    registry = Registry(tmp_path/'models')
    first = registry.add(trainer_bundle(folder, log, tmp_path), who='Ada')
    registry.promote(first.id, who='Ada')
    add_month(folder, log, 0, n_new, rule)
    return folder, registry, log

def trainer_bundle(folder, log, tmp_path):
    trainer(SimpleNamespace(train=checked_images(folder, log)), tmp_path/'first')
    return tmp_path/'first'

def add_month(folder, log, month, n, rule, same_as_before=0):
    "Reviewed images; the first few are near duplicates of images of the month before"
    rows = []
    for i in range(n):
        animal = labels[i % 2]
        seed = 10_000*(month if i < same_as_before else month + 1) + i
        image = noise_image(seed, animal)
        if i < same_as_before: image = Image.blend(image, Image.new('RGB', image.size, 'white'), .02)
        file = put(folder, animal, f'{month}-{i}', image)
        rows.append(LogRow(animal, .9, trusted=i % 5 > 0, confidence=.9, place=['gate', 'pond'][i % 3 % 2], sha256=sha256(file),
            time=start + day*(30*month + 30*i/n), answer=f'{month}-{i}'))
    for row, q in zip(rows, rule.choose(dict(answer=[r.answer for r in rows], trusted=[r.trusted for r in rows], confidence=[r.confidence for r in rows]))):
        row.chosen = None if np.isnan(q) else float(q)
    log.write(rows)
    for row in rows: log.write_verdict(Verdict(row.answer, True))

def test_a_year_never_trains_on_what_it_compares_on(tmp_path):
    "Twelve refreshes, with near duplicates across months and a cap: sides stay, time and disk stay bounded"
    folder, registry, log = site_of(tmp_path)
    rule = ReviewRule(.5, even=1)
    sides = {}
    trained = set()
    for month in range(1, 12):
        add_month(folder, log, month, 60, rule, same_as_before=6)
        images = checked_images(folder, log)
        division = divide(folder, images, sides, max_per_label=60, max_held=80)
        files = [i.file for part in (division.train, division.held, [i for i, _ in division.left_out]) for i in part]
        assert sorted(files) == sorted(i.file for i in images)  # each image once, none dropped
        held = {i.sha256 for i in division.held}
        assert not held & trained and all(i.is_random for i in division.held)
        trained |= {i.sha256 for i in division.train}
        assert len(division.train) <= 120 and len(division.held) <= 80 and len(division.held) > 20
        assert all(sides[d] == division.sides[d] for d in sides)
        sides = division.sides
    assert any('near duplicate' in why or 'like an image' in why for _, why in division.left_out)

def test_learning_only_images_are_never_held_back(tmp_path):
    folder, _, log = site_of(tmp_path, rule=ReviewRule(.1, usual=.3, even=.2))
    images = checked_images(folder, log)
    division = divide(folder, images, hold=.99)
    assert {i.is_random for i in division.held} == {True} and any(not i.is_random and not math.isnan(i.time) for i in division.train)

def test_odd_images(tmp_path):
    "A broken file, the same file twice, an image that the log does not know but the manifest does"
    folder, _, log = site_of(tmp_path, n_new=10)
    (folder/'black'/'broken.png').write_bytes(b'\x89PNG\r\n\x1a\nnothing')
    twin = next((folder/'black').glob('old-*.png'))
    (folder/'black'/'twin.png').write_bytes(twin.read_bytes())
    put(folder, 'black', 'told', noise_image(77, 'black'))
    (folder/'manifest.csv').write_text('file,label,place,time,chosen\nblack/told.png,black,hut,1767225600,0.5\nblack/twin.png,black,,,nonsense\n')
    images = checked_images(folder, log)
    told = next(i for i in images if i.file.name == 'told.png')
    assert (told.place, told.time, told.chosen) == ('hut', start, .5)
    reasons = {i.file.name: why for i, why in divide(folder, images).left_out}
    assert reasons['broken.png'] == 'cannot be opened' and 'the same file as another one' in reasons.values()

def test_an_empty_log_holds_nothing_back(tmp_path):
    folder, registry, log = site_of(tmp_path, n_new=2)
    done = refresh(folder, registry, tmp_path/'none.sqlite', trainer=trainer)
    assert not done.model and 'no model was trained' in done.words and not (tmp_path/'none.sqlite').exists()

# ---------------------------------------------------------------- ended at any moment

child = '''
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import importlib
r = importlib.import_module('bearcls.rollout.refresh')  # the wing's own `refresh` is the function
from bearcls.rollout.registry import Registry
from test_refresh import trainer
moment = sys.argv[3]
def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
def before(owner, name):
    setattr(owner, name, die)
def after(owner, name):
    real = getattr(owner, name)
    def both(*a, **k):
        real(*a, **k)
        die()
    setattr(owner, name, both)
make = trainer
if moment == 'divided': before(r, '_next_model')
if moment == 'training':
    def make(division, dest):
        dest.mkdir()
        (dest/'model.onnx').write_bytes(b'half')
        die()
if moment == 'trained': after(os, 'rename')
if moment == 'compared': before(Registry, 'add')
if moment == 'added': after(Registry, 'add')
if moment == 'offered': after(Registry, 'set_alias')
if moment == 'cleared':
    r._clear = lambda work, keep='': None if not (work/'bundle').exists() else die()
if moment.isdigit():
    left = int(moment)
    def trace(frame, event, arg):
        global left
        if 'rollout' not in frame.f_code.co_filename: return None
        left -= 1
        if left <= 0: die()
        return trace
    sys.settrace(trace)
folder = sys.argv[2]
done = r.refresh(folder + '/bears', folder + '/models', folder + '/log.sqlite', trainer=make, who='Ada')
print(done.model, done.offered)
'''

def run_child(tmp_path, moment):
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    return subprocess.run([sys.executable, '-c', child, str(Path(__file__).parent), str(tmp_path), moment], capture_output=True, text=True, env=environment)

def test_killed_at_every_step_and_run_again(tmp_path):
    folder, registry, log = site_of(tmp_path)
    first = registry.aliases()['champion']
    rng = random.Random(0)
    moments = ['divided', 'training', 'trained', 'compared', 'added', 'offered', 'cleared', *(str(int(10**rng.uniform(1, 3.7))) for _ in range(8))]
    killed = 0
    sides = {}
    for moment in moments:
        done = run_child(tmp_path, moment)
        killed += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
        assert registry.aliases()['champion'] == first and len(registry.models()) <= 2  # nothing half, nothing twice
        assert all(row['status'] == 'ok' for row in registry.check() if row['status'] != 'not listed')
        state = tmp_path/'bears.refresh'/'state.json'
        if state.exists():
            now = json.loads(state.read_text())['sides']
            assert all(now[d] == side for d, side in sides.items())
            sides = now
        if state.exists() and json.loads(state.read_text())['done']:  # the next one has all to do
            state.unlink()
            sides = {}
    assert killed >= 12
    last = run_child(tmp_path, 'never')
    assert last.returncode == 0, last.stderr[-2000:]
    model, offered = last.stdout.split()
    assert registry.aliases()['challenger'] == model and offered == 'True'
    assert [p.name for p in (tmp_path/'bears.refresh').iterdir() if p.is_dir()] == []

def test_two_at_once(tmp_path):
    folder, registry, log = site_of(tmp_path)
    def slow(division, dest):
        with pytest.raises(DataError, match='another refresh is at work'): refresh(folder, registry, log, trainer=trainer)
        trainer(division, dest)
    assert refresh(folder, registry, log, trainer=slow).offered

def test_a_trainer_that_fails_leaves_nothing_behind(tmp_path):
    folder, registry, log = site_of(tmp_path)
    def broken(division, dest): raise RuntimeError('no memory')
    with pytest.raises(RuntimeError, match='no memory'): refresh(folder, registry, log, trainer=broken)
    assert len(registry.models()) == 1
    assert refresh(folder, registry, log, trainer=trainer).offered

@pytest.mark.parametrize('text', ['', '[]', '{}', '{"format": "bearcls-refresh", "format_version": 2}', '{"format": "bearcls-refresh", "format_version": 1, "sides": 3}'])
def test_damaged_memory_is_refused(tmp_path, text):
    "Forgetting which images were held back would train on them"
    folder, registry, log = site_of(tmp_path, n_new=4)
    work = tmp_path/'bears.refresh'
    work.mkdir()
    (work/'state.json').write_text(text)
    with pytest.raises(DataError, match='which images are held back'): refresh(folder, registry, log, trainer=trainer)
    assert (work/'state.json').read_text() == text

def test_no_champion(tmp_path):
    folder, _, log = site_of(tmp_path, n_new=4)
    with pytest.raises(RegistryError): refresh(folder, tmp_path/'empty', log, trainer=trainer)

# ---------------------------------------------------------------- models that could go

def test_nothing_that_is_needed_is_removed(tmp_path):
    registry = Registry(tmp_path/'models')
    ids = []
    for i in range(8):
        bundle = write_bundle(Bundle(labels, (64, 64), threshold=.5 + i/100), b'model %d' % i, tmp_path/'bundle', '# x')
        ids.append(registry.add(bundle).id)
    registry.promote(ids[0])
    registry.promote(ids[1])      # a rollback may lead to the first
    registry.set_alias('challenger', ids[2])
    shown = prune_models(registry, keep=2)
    assert len(registry.models()) == 8 and shown.count('could go') == 3
    prune_models(registry, keep=2, apply=True)
    assert [r.id for r in registry.models()] == [*ids[:3], *ids[6:]]
    registry.rollback()
    assert 'could go' not in prune_models(registry, keep=5)

# ---------------------------------------------------------------- with torch

def test_a_real_training(tmp_path):
    "The images that were picked for doubt are trained on, not validated with; the bundle goes into the registry"
    pytest.importorskip('fastai', reason='fastai is not installed')
    folder, registry, log = site_of(tmp_path, n_old=4, n_new=60, rule=ReviewRule(.4, usual=.3, even=.5))
    seen = {}
    def small(division, dest):
        import bearcls.export.convert as convert
        real = convert.export_bundle
        def note(learn, dest):
            seen.update(valid=[Path(f) for f in learn.dls.valid_ds.items], train=[Path(f) for f in learn.dls.train_ds.items])
            return real(learn, dest, ood_score=False)
        convert.export_bundle = note
        try: return train_bundle(division, dest, route='scratch', epochs=1, size=64, weights=None, cache=False)
        finally: convert.export_bundle = real
    done = refresh(folder, registry, log, trainer=small, fewest=5)
    assert done.model and registry.model(done.model).labels == labels
    images = {i.file: i for i in checked_images(folder, log)}
    assert all(images[f].is_random or math.isnan(images[f].time) for f in seen['valid'])
    assert any(not images[f].is_random and not math.isnan(images[f].time) for f in seen['train'])

def test_import_is_light():
    code = ("import sys, bearcls.rollout.refresh; "
        "heavy = [m for m in ('torch', 'fastai', 'pandas', 'ipywidgets', 'sqlalchemy') if m in sys.modules]; assert not heavy, heavy")
    subprocess.run([sys.executable, '-c', code], check=True)

def test_the_command(tmp_path, capsys, monkeypatch):
    "Status 0 for an offer and for nothing new, 1 for a model that is worse, 2 for wrong input"
    module = sys.modules['bearcls.rollout.refresh']  # the wing's own `refresh` is the function
    from bearcls.cli import main
    folder, registry, log = site_of(tmp_path)
    words = ['refresh', str(folder), registry.folder, str(log.file), '--who', 'Ada']
    monkeypatch.setattr(module, 'train_bundle', lambda division, dest: trainer(division, dest))
    assert main(words) == 0 and 'is offered' in capsys.readouterr().out
    assert main([*words, '--json']) == 0 and json.loads(capsys.readouterr().out)['repeated']
    def wrong(division, dest):
        swap = dict(zip(labels, labels[::-1]))
        trainer(SimpleNamespace(train=[replace(i, label=swap[i.label]) for i in division.train]), dest)
    monkeypatch.setattr(module, 'train_bundle', wrong)
    assert main([*words, '--work', str(tmp_path/'other')]) == 1 and 'worse for' in capsys.readouterr().out
    for bad in (['--hold', '2'], ['--max-per-label', '0']): assert main([*words, *bad]) == 2
    assert main(['refresh', str(folder), str(tmp_path/'none'), str(log.file)]) == 2
