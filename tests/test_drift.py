"""Drift detection: false alarms stay as rare as stated, changes are found, and a job goes on exactly where it stopped"""
import base64, json, subprocess, sys
import numpy as np
import pytest
from bearcls.core import BearclsError, DataError
from bearcls.inference.bundle import Bundle, pack_columns, read_bundle, unpack_columns, write_bundle
from bearcls.inference.files import BundleError
from bearcls.bets import Bins
from bearcls.monitor.drift import DriftMonitor
from bearcls.monitor.reference import Reference, Scenes, fewest_scenes, no_scene, watched
from tiny_bundle import make_bundle

def columns(n, seed, shift=0., share=1., start=0, features=3):
    "`n` scenes, on a share of which the first feature is shifted"
    rng = np.random.default_rng(seed)
    moved = rng.random(n) < share
    names = ('ood_score', 'brightness', 'sharpness')[:features]
    return dict(id=start + np.arange(n), time=600.*(start + np.arange(n)), **{name: rng.normal(shift*moved*(k == 0), 1, n) for k, name in enumerate(names)})

def crossings(monitor, given):
    found = []
    describe = monitor._alarm
    monitor._alarm = lambda *args: found.append(1) or describe(*args)
    monitor.update(given)
    return len(found)

@pytest.mark.parametrize('m', [20, 83, 333])
def test_false_alarms_are_as_rare_as_stated(m):
    "Fresh values, 60 references of each size: with a run length of 500, at most one in 500 scenes"
    n = 3000
    k = sum(crossings(DriftMonitor(Reference.from_columns(columns(m, (m, seed))), run_length=500, seed=seed), columns(n, (m, seed, 1))) for seed in range(60))
    assert k/(60*n) < 1/500, k

def test_odds_are_fair():
    "The mean of what each bet wins is 1, also with many equal values: over references and streams alike"
    won = []
    for seed in range(4000):
        rng = np.random.default_rng(seed)
        values = np.round(rng.normal(size=33), 0)  # many ties
        bins = Bins(values[:30], rng.random(30))
        e = bins.evidence(bins.find(values[30:], rng.random(3)), bins.bet())
        won.append(np.prod(e, 0))
    mean, error = np.mean(won, 0), np.std(won, 0)/len(won)**.5
    assert (abs(mean - 1) < 4.5*error).all(), (mean, error)

def test_changes_are_found():
    "What is beyond everything known is found soon; the alarm knows since when, and shows the right rows"
    for seed in range(5):
        monitor = DriftMonitor(Reference.from_columns(columns(208, seed)), seed=seed)
        assert not monitor.update(columns(300, (seed, 1)))
        later = columns(200, (seed, 2), 6, .3, 300)
        alarm, = monitor.update(later)[:1]
        assert (alarm.feature, alarm.direction) == ('ood_score', 'higher') and 270 < alarm.since/600 <= alarm.time/600 < 400
        assert (later['ood_score'][np.array(alarm.rows) - 300] > 3).mean() > .5 and len(alarm.nearest) == len(alarm.rows)

def test_better_is_no_alarm():
    "Images more like the training's are no harm"
    monitor = DriftMonitor(Reference.from_columns(columns(208, 0)))
    assert not monitor.update(columns(1000, 7, -3)) and monitor.update(columns(1000, 2, 3, 1, 1000))

@pytest.mark.parametrize('by_hour', [False, True])
def test_chunks_and_states_change_nothing(by_hour):
    "Row by row, or all at once, or through JSON in between: the same wealth and the same alarms, to the last bit"
    known = Reference.from_columns(columns(600, 0))
    rows = columns(900, 1, 2, .4)
    rows['brightness'][::7] = np.nan
    rows['scene'] = np.repeat(np.random.default_rng(0).integers(-2**62, 2**62, 300), 3)
    rows['time'] = np.repeat(600.*np.arange(300), 3)
    whole = DriftMonitor(known, by_hour=by_hour)
    whole.update(rows)
    parts = DriftMonitor(known, by_hour=by_hour)
    at = 0
    for size in (1, 2, 250, 0, 3, 400, 244):
        parts.update({name: v[at:at + size] for name, v in rows.items()})
        at += size
        parts = DriftMonitor.from_state(json.loads(json.dumps(parts.state())))
    assert at == 900 and whole.n == parts.n == 300
    assert np.array_equal(whole.wealth, parts.wealth) and [a.words for a in whole.alarms] == [a.words for a in parts.alarms]

def test_bursts_count_once():
    "Twenty images of a scene are one"
    scenes = Scenes()
    hashes = np.random.default_rng(0).integers(-2**63 + 1, 2**63 - 1, 50)
    first = scenes.first(np.repeat(1000.*np.arange(50), 20) + np.tile(np.arange(20), 50), np.repeat(hashes, 20))
    assert first.sum() == 50 and first[::20].all()
    assert Scenes().first([0, 1], [no_scene, no_scene]).all()

def test_hours_without_reference_join():
    "An hour that the reference does not know is watched as soon as it has 20 scenes"
    known = columns(300, 0)
    known['time'] = known['time'] % 43_200  # mornings only
    monitor = DriftMonitor(Reference.from_columns(known), by_hour=True)
    assert set(monitor.parts) == set(range(12))
    evening = columns(19, 1) | dict(time=72_000. + np.arange(19))
    monitor.update(evening)
    assert monitor.parts[20].bins is None
    monitor.update(evening)
    assert monitor.parts[20].bins is not None

def test_bundle_carries_it(tmp_path):
    "Written and read; forged or cut columns are refused; older bundles have none"
    rng = np.random.default_rng(0)
    kept = dict(brightness=rng.normal(120, 30, 333), label=rng.integers(0, 3, 333), trusted=rng.random(333) < .9, scene=rng.integers(-2**63, 2**63 - 1, 333), time=np.arange(333.))
    packed = pack_columns(kept)
    assert len(json.dumps(packed)) < 30_000 and np.array_equal(unpack_columns(packed)['scene'], kept['scene'])
    bundle = read_bundle(make_bundle(tmp_path/'new', reference=packed))
    assert len(Reference.from_bundle(bundle)) == 333
    assert read_bundle(make_bundle(tmp_path/'old')).reference is None
    with pytest.raises(BundleError, match='carries no reference'): Reference.from_bundle(read_bundle(tmp_path/'old'))
    file = tmp_path/'new'/'bundle.json'
    good = json.loads(file.read_text())
    forged = [7, [], dict(n=0, columns={}), dict(n=2, columns=dict(brightness='AAAA')), dict(n=1, columns=dict(brightness='!!!!')), dict(n=1, columns=dict(nothing='AAAA')),
        dict(n=10**9, columns={}), dict(n=True, columns=dict(trusted=7)), dict(n=1, columns=[]), dict(n=1.5, columns={})]
    for wrong in forged:
        file.write_text(json.dumps(good | dict(reference=wrong)))
        with pytest.raises(BundleError, match='`reference` holds'): read_bundle(tmp_path/'new')
    label = base64.b64encode(np.array([9], '<u2').tobytes()).decode()
    file.write_text(json.dumps(good | dict(reference=dict(n=1, columns=dict(label=label)))))
    with pytest.raises(BundleError, match='unknown labels'): Reference.from_bundle(read_bundle(tmp_path/'new'))

def test_export_measures_as_the_log_does(tmp_path):
    "The numbers of held-back images and those of the log come from one and the same rule"
    held_out = pytest.importorskip('bearcls.export.held_out', reason='fastai is not installed')
    from bearcls.inference.classifier import Classifier
    from bearcls.monitor.writer import answer_row, pending_answer
    from bearcls.sample.standins import draw_face
    classifier = Classifier(make_bundle(tmp_path/'furs'))
    draw_face(300, 200).save(tmp_path/'face.jpg')
    row, look = answer_row(pending_answer(classifier.answer(tmp_path/'face.jpg'))), held_out._look(classifier, tmp_path/'face.jpg')
    assert {name: getattr(row, name) for name in look if name != 'light'} == {name: v for name, v in look.items() if name != 'light'}

def test_damaged_states_are_refused():
    "Whatever is changed in a state: an error of bearcls, or a monitor"
    monitor = DriftMonitor(Reference.from_columns(columns(50, 0)))
    monitor.update(columns(300, 1, 4, .5))
    state = json.loads(json.dumps(monitor.state()))
    for name in state:
        for wrong in (None, 7, 'text', [], {}):
            with pytest.raises(DataError, match='`state`'): DriftMonitor.from_state(state | {name: wrong}).update(columns(5, 2)); raise DataError('`state` was good')
        with pytest.raises(DataError, match='`state`'): DriftMonitor.from_state({n: v for n, v in state.items() if n != name})

def test_hostile_columns():
    "Rows with nan, infinity and nothing at all"
    monitor = DriftMonitor(Reference.from_columns(columns(50, 0)))
    assert monitor.update({}) == [] and monitor.update(columns(0, 0)) == []
    bad = columns(40, 1)
    bad['ood_score'][:] = np.inf
    bad['brightness'][:] = np.nan
    monitor.update(bad)
    assert np.isfinite(monitor.wealth).all() and json.dumps(monitor.state(), allow_nan=True)
    for wrong in (dict(brightness=[1], sharpness=[1, 2]), dict(smell=[1])):
        with pytest.raises(BearclsError, match='`columns`'): monitor.update(wrong)

def test_what_a_reference_can_promise():
    assert fewest_scenes(2000, .1) < fewest_scenes(333, .1) < fewest_scenes(208, .1) and fewest_scenes(83, .1) is None

def test_no_torch():
    "A cron job that watches loads neither torch nor pandas"
    code = 'import sys, bearcls.monitor.drift; print([m for m in ("torch", "fastai", "pandas", "matplotlib", "scipy") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
