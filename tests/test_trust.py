"Confidence and trust: the same in Python, in the fit and on the page; what the fit learns; what export writes, and what older bundles do"
import json, math, shutil, subprocess
from dataclasses import replace
import numpy as np, pytest
from PIL import Image
from bearcls.core import DataError, package_file
from bearcls.export.convert import export_bundle
from bearcls.export.held_out import fit_trust, learner_ood_score
from bearcls.export.robustness import apply_corruption
from bearcls.export.trust import answer_copies, fit_confidence, measure_trust, trust_threshold
from bearcls.inference.bundle import Bundle, bundle_json, read_bundle, write_bundle
from bearcls.sample.standins import colour_model, furs
from bearcls.inference.classifier import Classifier
from bearcls.inference.prediction import (Confidence, confidence_of, confidence_words, evidence_of, judge, log_odds,
    look_at)
from bearcls.inference.files import BundleError
from bearcls.interpret.evaluate import evaluate
from bearcls.sample.bears import draw_bears
from bearcls.train.learner import train

weights = {'probability': [3., 2., 1.2], 'second opinion': [1., 1.5, 2.], 'lightness': [.7, .2, .4], 'ood_score': [.2, .6, -.5]}
metadata = dict(evidence=weights, bias=1.5)

def made_up(n=300, n_labels=3, seed=0):
    "Probabilities, lightness, OOD scores and overlaps of answers"
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([.4]*n_labels, n)
    p[:3] = np.eye(n_labels)[:3]  # as sure as can be
    return p, rng.integers(0, 256, n), rng.normal(1, 2, n), rng.uniform(0, 1, (n, n_labels))*(rng.random((n, n_labels)) > .1)

# Confidence

def test_one_answer_is_a_row_of_many():
    p, light, far, overlaps = made_up()
    many = confidence_of(metadata, evidence_of(p, light, far, overlaps))
    assert many == pytest.approx([look_at(metadata, *one).value for one in zip(p, light, far, overlaps)]) and np.isfinite(many).all()

@pytest.mark.parametrize('names', [('probability',), ('probability', 'lightness'), ('probability', 'lightness', 'ood_score'), tuple(weights)])
def test_evidence_that_is_missing_is_not_asked_for(names):
    p, light, far, overlaps = made_up(20)
    some = dict(evidence={name: weights[name] for name in names}, bias=0.)
    full = evidence_of(p, light, far, overlaps)
    part = evidence_of(p, light, far if 'ood_score' in names else None, overlaps if 'second opinion' in names else None)
    assert set(names) <= set(part) and (confidence_of(some, part) == confidence_of(some, full)).all()

def test_extremes_stay_finite():
    "Certain answers, no overlap at all, infinite distance"
    p, nothing = np.array([[1., 0.], [1., 0.]]), np.zeros((2, 2))
    found = confidence_of(metadata, evidence_of(p, [0, 255], np.array([1e9, -1e9]), nothing))
    assert np.isfinite(found).all() and (0 <= found).all() and (found <= 1).all()

def test_more_doubt_is_less_confidence():
    p, light, far, overlaps = np.array([.9, .1]), 200, .2, np.array([.8, .2])
    best = look_at(metadata, p, light, far, overlaps).value
    worse = [look_at(metadata, np.array([.6, .4]), light, far, overlaps), look_at(metadata, p, 70, far, overlaps), look_at(metadata, p, light, 2., overlaps), look_at(metadata, p, light, far, overlaps[::-1])]
    assert all(w.value < best for w in worse)
    assert [w.doubt for w in worse[1:]] == ['lightness', 'ood_score', 'second opinion'] and worse[3].other == 1

def test_words_name_what_speaks_against_an_answer():
    bundle = Bundle(['black', 'grizzly'], (64, 64), threshold=.6, confidence=metadata)
    p = dict(black=.9, grizzly=.1)
    said = [judge(bundle, p, (99, 99), 200, .1, Confidence(.4, doubt, other)) for doubt, other in
        [('second opinion', 1), ('second opinion', None), ('lightness', None), ('ood_score', None), ('probability', None), ('', None)]]
    assert 'on a second look like grizzly; such answers are right in 40 of 100 cases' in said[0] and 'rather dark' in said[2] and 'somewhat unlike' in said[3]
    assert said[4] == said[5] == 'it could be black (0.90) or grizzly (0.10)' and all(said)
    assert judge(bundle, p, (99, 99), 200, .1, Confidence(.6)) == '' != judge(bundle, p, (99, 99), 10, .1, Confidence(.99))

def test_the_page_says_the_same(tmp_path):
    "Confidence, doubt and words in JavaScript"
    if shutil.which('node') is None: pytest.skip('node is not installed')
    labels = ['black', 'brown', 'white']
    bundle = Bundle(labels, (64, 64), threshold=.7, confidence=metadata)
    cases = [dict(p=p.tolist(), light=int(light), far=float(far), overlaps=overlaps.tolist()) for p, light, far, overlaps in zip(*made_up())]
    (tmp_path/'model.js').write_bytes(package_file('static/web/model.js').read_bytes())
    (tmp_path/'package.json').write_text('{"type": "module"}')
    given = json.dumps(dict(labels=labels, trust=dict(threshold=.7, smallest=32, ood_score=None, confidence=metadata)))
    (tmp_path/'main.js').write_text(f"import {{ answer, lookAtAnswer }} from './model.js';\nconst metadata = {given};\nconsole.log(JSON.stringify({json.dumps(cases)}.map((c) => "
        "[lookAtAnswer(metadata.trust.confidence, c.p, c.light, c.far, c.overlaps), answer(metadata, c.p, [80, 80], c.light, c.far, c.overlaps)])));")
    theirs = json.loads(subprocess.run(['node', 'main.js'], cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    reasons = set()
    for case, (sure, answer) in zip(cases, theirs, strict=True):
        p, overlaps = np.array(case['p']), np.array(case['overlaps'])
        ours = look_at(metadata, p, case['light'], case['far'], overlaps)
        assert sure['value'] == pytest.approx(ours.value, abs=1e-9) and (sure['doubt'], sure['other']) == (ours.doubt, ours.other)
        order = np.argsort(-p, kind='stable')
        reason = judge(bundle, {labels[i]: float(p[i]) for i in order}, (80, 80), case['light'], case['far'], ours)
        assert (answer['reason'], answer['trusted'], answer['confidence']) == (reason, not reason, sure['value'])
        reasons.add(reason.split('(')[0].split(';')[0])
    assert len(reasons) > 8

@pytest.mark.parametrize('row', [[0., 1e-30, 1e30], [-1e30, 1e-30, 1e30], [1e30, 1., -1e30]])
def test_forged_weights_give_an_answer(row, tmp_path):
    path = write_bundle(Bundle(list(furs), (64, 64), confidence=dict(evidence={'probability': row, 'lightness': [-row[0], row[1], -row[2]]}, bias=-1e30)), colour_model(), tmp_path/'b')
    answer = Classifier(path).predict(Image.new('RGB', (80, 80), furs['brown']))
    assert 0 <= answer.confidence <= 1 and answer.trusted == (not answer.reason)

# The fit

def answers(n, seed=0, n_groups=20):
    "Evidence and truth by a known rule"
    rng = np.random.default_rng(seed)
    evidence = {'probability': rng.normal(2.5, 1.5, n), 'second opinion': rng.normal(1, 2, n), 'lightness': rng.uniform(0, 1, n)}
    odds = .5*evidence['probability'] + .8*evidence['second opinion'] + 2*(evidence['lightness'] - .5)
    return evidence, rng.random(n) < 1/(1 + np.exp(-odds)), rng.integers(0, n_groups, n)

def test_the_fit_finds_a_known_rule():
    "Close to the true probabilities on answers that it was not fitted to, and calibrated"
    evidence, right, _ = answers(3000)
    later, is_right, _ = answers(20_000, seed=1)
    sure = confidence_of(fit_confidence(evidence, right), later)
    bins = np.digitize(sure, np.linspace(0, 1, 11))
    off = sum(abs((sure - is_right)[bins == k].sum()) for k in np.unique(bins))/len(sure)
    assert off < .02

@pytest.mark.parametrize('truth', [True, False])
def test_one_kind_of_answer_alone_stays_bounded(truth):
    evidence, _, _ = answers(100)
    fitted = fit_confidence(evidence, np.full(100, truth))
    assert all(math.isfinite(v) for row in fitted['evidence'].values() for v in row) and abs(fitted['bias']) < 10
    json.dumps(fitted, allow_nan=False)

def test_without_answers_the_confidence_is_the_probability():
    "What little data leave: the prior"
    evidence, _, _ = answers(2)
    evidence['probability'] = np.array([1., 3.])
    sure = confidence_of(fit_confidence(evidence, np.array([True, True])), {'probability': np.array([2.]), 'second opinion': evidence['second opinion'].mean(), 'lightness': evidence['lightness'].mean()})
    assert abs(sure[0] - 1/(1 + math.exp(-2))) < .06

def test_no_weight_turns_round():
    "Evidence that speaks the wrong way by chance counts for nothing"
    rng = np.random.default_rng(0)
    right = rng.random(200) < .5
    evidence = {name: rng.normal(0, 1, 200) - sign*2*right for name, sign in (('probability', 1), ('second opinion', 1), ('lightness', 1), ('ood_score', -1))}
    assert [row[2] for row in fit_confidence(evidence, right)['evidence'].values()] == [0]*4

def test_evidence_is_asked_for_where_no_threshold_needs_it(tmp_path):
    "A bundle whose OOD score has no threshold, and whose confidence needs it"
    metadata = Bundle(list(furs), (64, 64), confidence=dict(evidence={'ood_score': [0., 1., -9.]}, bias=0.))
    classifier = Classifier(write_bundle(metadata, colour_model(ood_score=True), tmp_path/'b'))
    assert classifier.predict(Image.new('RGB', (80, 80), (255, 0, 255))).confidence < classifier.predict(Image.new('RGB', (80, 80), furs['brown'])).confidence

def test_constant_evidence_does_no_harm():
    evidence, right, _ = answers(500)
    sure = confidence_of(fit_confidence(evidence | {'ood_score': np.zeros(500)}, right), evidence | {'ood_score': np.zeros(500)})
    assert sure == pytest.approx(confidence_of(fit_confidence(evidence, right), evidence), abs=1e-3)

@pytest.mark.parametrize('max_error', [.02, .05, .2])
def test_thresholds_keep_what_they_promise_on_other_answers(max_error):
    "Over forty sets of 600 answers: wrong among the trusted, on answers that had no part in it"
    evidence, right, _ = answers(5000)
    fitted = fit_confidence(evidence, right)
    bad = n = 0
    for seed in range(2, 42):
        known, is_right, _ = answers(600, seed)
        threshold = trust_threshold(confidence_of(fitted, known), is_right, max_error)
        later, truth, _ = answers(2000, 1000 + seed)
        trusted = confidence_of(fitted, later) >= threshold
        bad, n = bad + (trusted & ~truth).sum(), n + trusted.sum()
    assert bad/n <= max_error*1.05 and n > 2000

def test_thresholds_at_the_ends():
    assert trust_threshold(np.array([.9, .8, .7]), np.ones(3, bool), .05) == .95  # three answers cannot tell 5%
    assert trust_threshold(np.linspace(0, 1, 200), np.ones(200, bool), .05) == .5
    for wrong in (0, 1, -1):
        with pytest.raises(ValueError, match='max_error'): trust_threshold(np.ones(3), np.ones(3, bool), wrong)
    with pytest.raises(DataError, match='got none'): fit_confidence({'probability': np.zeros(0)}, np.zeros(0))

def test_what_is_measured_counts_copies_apart():
    trusted, right = np.array([1, 1, 1, 0, 1, 1], bool), np.array([1, 0, 1, 0, 1, 0], bool)
    found = measure_trust(trusted, right, np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 0], bool))
    assert (found['error'], found['trusted'], found['images'], found['copies'], found['groups']) == (.5, pytest.approx(2/3), 3, 3, 3)
    assert found['error_as_is'] == pytest.approx(1/3) and found['trusted_as_is'] == 1 and found['error_low'] <= .5 <= found['error_high']
    assert '50.0%' in confidence_words(found)

def test_sources_that_are_wrong_together_widen_the_interval():
    rng = np.random.default_rng(0)
    groups, trusted = np.arange(400) % 20, np.ones(400, bool)
    together, alone = groups >= 2, rng.random(400) >= .1
    wide, narrow = (measure_trust(trusted, right, groups, trusted) for right in (together, alone))
    assert wide['error_high'] - wide['error_low'] > 1.8*(narrow['error_high'] - narrow['error_low'])

# Bundles

def test_older_bundles_keep_their_rule(tmp_path):
    "Without `trust.confidence` the probability decides"
    path = write_bundle(Bundle(list(furs), (64, 64), threshold=.9), colour_model(), tmp_path/'b')
    said = json.loads((path/'bundle.json').read_text())
    del said['trust']['confidence']
    (path/'bundle.json').write_text(json.dumps(said))
    answer = Classifier(path).predict(Image.new('RGB', (80, 80), furs['brown']))
    assert read_bundle(path).confidence is None and answer.confidence is None and answer.trusted == (answer.probability >= .9)

def test_confidence_decides_where_it_is_known(tmp_path):
    plain = dict(evidence={'probability': [0., 1., 1.]}, bias=-20.)
    path = write_bundle(Bundle(list(furs), (64, 64), confidence=plain), colour_model(), tmp_path/'b')
    answer = Classifier(path).predict(Image.new('RGB', (80, 80), furs['brown']))
    assert answer.probability > .9 and answer.confidence < .1 and not answer.trusted and 'it could be' in answer.reason
    row, = Classifier(path).predict_batch([Image.new('RGB', (80, 80), furs['brown'])], quiet=True)
    assert row.as_dict()['confidence'] == pytest.approx(answer.confidence)
    assert read_bundle(path).confidence == plain and bundle_json(read_bundle(path), '0'*64, 1)['trust']['confidence'] == plain

@pytest.mark.parametrize('name', ['second opinion', 'ood_score'])
def test_promised_evidence_must_be_there(tmp_path, name):
    path = write_bundle(Bundle(list(furs), (64, 64), confidence=dict(evidence={name: [0., 1., 1.]}, bias=0.)), colour_model(), tmp_path/'b')
    with pytest.raises(BundleError, match='as evidence'): Classifier(path)

@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    "A Learner trained from nothing, what it says, and its bundle"
    path = draw_bears(tmp_path_factory.mktemp('trust')/'bears', n_per_label=60, seed=8, faults=False)
    learn = train(path, 'scratch', epochs=4, size=48, quiet=True)
    seen = evaluate(learn, 'all')
    return learn, seen, export_bundle(learn, path.parent/'bundle', seen=seen)

def test_a_trained_body_learns_from_validation_images_alone(learned):
    learn, seen, bundle = learned
    metadata = read_bundle(bundle)
    assert set(metadata.confidence['evidence']) == {'probability', 'lightness', 'ood_score'} and metadata.threshold >= .5
    assert metadata.confidence['images'] == len(seen.only('valid')) and metadata.confidence['copies'] == 2*len(seen.only('valid'))
    assert 'corrupted copies' in (bundle/'README.md').read_text()
    rows = Classifier(bundle).predict_batch(list(seen.table.file[:20]), quiet=True)
    assert all(0 < r.prediction.confidence < 1 for r in rows)
    assert all(r.prediction.confidence >= metadata.threshold for r in rows if r.prediction.trusted)

def test_a_threshold_of_your_own(learned, tmp_path):
    learn, seen, _ = learned
    metadata = read_bundle(export_bundle(learn, tmp_path/'b', seen=seen, threshold=.97))
    assert metadata.threshold == .97 and metadata.confidence['trusted'] < .9
    with pytest.raises(ValueError, match='`max_error` must be between 0 and 1, got 2'): export_bundle(learn, tmp_path/'c', seen=seen, max_error=2)

def test_too_few_images_give_no_confidence(learned):
    learn, seen, bundle = learned
    held = np.flatnonzero(seen.table.split == 'valid')
    few = seen.where(np.isin(np.arange(len(seen)), held[:19]) | (seen.table.split == 'train').to_numpy())
    assert fit_trust(learn, Classifier(bundle), few) is None

def test_copies_are_of_readable_files(learned, tmp_path):
    "A file that cannot be opened is left out, and the rest keep their places"
    _, seen, bundle = learned
    broken = tmp_path/'broken.png'
    broken.write_bytes(b'\x89PNG')
    copies = answer_copies(Classifier(bundle), [seen.table.file[0], broken, seen.table.file[1]], 3)
    assert copies.of.tolist() == [0]*4 + [2]*4 and copies.is_copy.sum() == 6
    again = answer_copies(Classifier(bundle), [seen.table.file[0], broken, seen.table.file[1]], 3)
    assert (copies.logits == again.logits).all() and (copies.kinds == again.kinds).all()
    with pytest.raises(DataError, match='None of the 1 images can be opened'): answer_copies(Classifier(bundle), [broken])

def test_wrong_answers_on_photographs_are_noticed(shared, tmp_path, monkeypatch):
    "A head on ImageNet's features, a third of the photographs: the confidence tells wrong from right better than the probability, and the page of the bundle says how well"
    import torch
    from bearcls.folders import image_files
    for file in image_files(shared/'data'/'bears')[::3]:
        (tmp_path/'bears'/file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path/'bears'/file.parent.name)
    monkeypatch.setenv('TORCH_HOME', str((shared/'torch').resolve()))
    learn = train(tmp_path/'bears', 'fast', 'squeezenet1_1', quiet=True)
    seen = evaluate(learn, 'all')
    bundle = export_bundle(learn, tmp_path/'bundle', seen=seen)
    metadata, classifier = read_bundle(bundle), Classifier(bundle)
    assert set(metadata.confidence['evidence']) == set(weights) and metadata.confidence['error'] < .1
    others = [f for i, f in enumerate(image_files(shared/'data'/'bears')) if i % 3 == 1]
    from bearcls.images import load_image
    images = [apply_corruption(load_image(f, 280), kind, 2, i) for i, f in enumerate(others) for kind in ('night', 'motion blur', 'occlusion')]
    answers = [r.prediction for r in classifier.predict_batch(images, quiet=True)]
    right = np.array([a.label == f.parent.name for a, f in zip(answers, [f for f in others for _ in range(3)])])
    from bearcls.export.ood import auroc
    by = {name: auroc(-v[right], -v[~right]) for name, v in dict(confidence=np.array([a.confidence for a in answers]), probability=np.array([a.probability for a in answers])).items()}
    assert by['confidence'] > max(.85, by['probability'])
    trusted = np.array([a.trusted for a in answers])
    assert (~right[trusted]).mean() < .5*(~right).mean() and trusted.mean() > .04
