"""A year of a model in use, with the care of bearcls.rollout and without it

python bench/rollout_year.py --out year.json [--drawn | --data FOLDER] [--days 365] [--per-day 12] [--arch squeezenet1_1]

The same images pass two cameras in both years; from day 150 to 280 there is snow at the pond. Without care, people get each label that the
first model gives. With care the model begins in shadow, gets the gate and then everything as its criteria are met, steps back when an alarm is
raised, and is refreshed on reviewed images; the new model is tried beside the old one and on half of the gate's images before it takes over.
`--drawn` uses drawn animals and a small model that learns in a second; `--data` photographs, one folder for each label, and `fit_fast`.

wrong_care      share of wrong labels that people got, with care; `wrong_plain` without
looked          share of the images that a person looked at, and `hours_looked` at 10 seconds each; `hours_saved` against looking at all
events          what the rollout's record says: time, who, what and why
days            by day: stage, visits, wrong with care, wrong without, looked at"""
import tempfile, time
from dataclasses import asdict
from pathlib import Path
from bearcls.inference.classifier import Classifier
from bearcls.monitor.watch import LogWatch, normal_of
from bearcls.rollout.canary import Canary, splits_from
from bearcls.rollout.pairs import PairTest, pairs_from
from bearcls.rollout.refresh import refresh, train_bundle
from bearcls.rollout.returning import return_images
from bearcls.sample.campsite import Campsite
from bearcls.steps import Needs, Scope, moment_words
from bearcls.teach.year import CampsiteYear, pixel_trainer, year_summary
from common import arguments, save

def play(year, total=365):
    "The whole story; what was decided stands in the rollout's record"
    rollout = year.rollout
    told = {}
    rollout.start('Ranger', 'a model for two cameras')
    for stage in ('limited', 'full'):
        rollout.require(stage, Needs(verdicts=100, error=.1, days=14, quiet=0, look=3), 'Ranger', 'a small campsite')
    year.reviewing(.25)
    year.until_ready('agrees with me in shadow', Scope(('gate',)))
    year.until_ready('as good at the gate')
    year.reviewing(.05)
    year.live(30)
    normal = normal_of(log=year.log, reference_until=year.now)
    normal.promised = .05
    rollout.watch = LogWatch(year.log, normal)
    year.live(total - year.today, lambda: rollout.check() is not None)
    told['alarm'] = year.today
    if year.today >= total: return told
    rollout.watch = None  # the ranger has seen the alarm; winter is the new normal
    year.reviewing(.25)
    year.live(21)
    returned = return_images(year.log, year.camera, year.bears)
    told['returned'] = returned.counts()
    done = refresh(year.bears, year.registry, year.log, trainer=year.trainer, max_per_label=600, who='Ana')
    told['refresh'] = done
    if not done.offered: return told
    new = Classifier(year.registry.path('challenger'))
    year.supervised.models['challenger'] = new
    rollout.challenge(new.bundle.digest, 'Ana', 'refreshed on winter images')
    begun = year.now
    models = year.first.bundle.digest, new.bundle.digest
    pairs = PairTest(place='pond')  # there, the ranger looks at everything
    def better():
        pairs.look(pairs_from(year.columns(begun), models).at('pond'))
        return bool(pairs.decision)
    year.live(28, better)
    told['pairs'] = pairs
    canary = Canary(new.bundle.digest, steps=(.5, 1.), review=(1., 1.), margin=.1, verdicts=20)
    canary.start(year.now)
    year.reviewing(1)
    rollout.challenge(new.bundle.digest, 'Ana', pairs.words, Scope(('gate',), share=.5))
    begun_canary = year.now
    def widened():
        canary.look(splits_from(year.columns(begun_canary)), year.now)
        return canary.share in (0, 1)
    year.live(45, widened)
    told['canary'] = canary
    if canary.share != 1: return told
    year.registry.promote(done.model, who='Ana', why=canary.changes[-1].why)
    year.supervised.models = dict(champion=new)
    rollout.challenge('', 'Ana', 'it is the champion now')
    year.reviewing(.25)
    year.until_ready('as good in winter as in summer')
    year.reviewing(.05)
    year.live(total - year.today)
    return told

if __name__ == '__main__':
    parser = arguments(__doc__)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--drawn', action='store_true', help='drawn animals (the default)')
    kind.add_argument('--data', type=Path, help='image folder with photographs')
    parser.add_argument('--days', type=int, default=365)
    parser.add_argument('--per-day', type=int, default=12)
    parser.add_argument('--arch', default='squeezenet1_1')
    args = parser.parse_args()
    trainer = pixel_trainer
    if args.data: trainer = lambda division, dest: train_bundle(division, dest, arch=args.arch, route='fast')
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder:
        year = CampsiteYear(Campsite(args.data, args.per_day), folder, trainer)
        told = play(year, args.days)
        year.writer.close()
        events = [dict(time=moment_words(e.time), who=e.who or 'by itself', what=e.words, why=e.why) for e in year.rollout.record.events
            if e.kind != 'look']
    for e in events: print(f"{e['time']}  {e['who']}: {e['what']}. {e['why']}")
    told = {k: v if isinstance(v, (int, dict)) else getattr(v, 'words', None) or getattr(v, 'decision', '') for k, v in told.items()}
    save(dict(kind='photographs' if args.data else 'drawn', **year_summary(year.days), told=told, seconds=time.time() - begun, events=events,
        days=[asdict(d) for d in year.days]), args.out, ('days', 'events'))
