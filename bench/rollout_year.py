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
from pathlib import Path
import numpy as np
from PIL import Image
from bearcls.inference.bundle import Bundle, write_bundle
from bearcls.inference.classifier import Classifier
from bearcls.monitor.accuracy import ReviewRule
from bearcls.monitor.log import PredictionLog
from bearcls.monitor.watch import LogWatch, normal_of
from bearcls.monitor.writer import LogWriter
from bearcls.rollout.canary import Canary, splits_from
from bearcls.rollout.pairs import PairTest, pairs_from
from bearcls.rollout.refresh import checked_images, refresh, train_bundle
from bearcls.rollout.registry import Registry
from bearcls.rollout.returning import return_images
from bearcls.rollout.stages import Rollout, Supervised
from bearcls.sample.campsite import Campsite
from bearcls.sample.standins import fit_pixels
from bearcls.steps import Needs, NotReady, Scope, moment_words
from common import arguments, save

day = 86400

def pixel_trainer(division, dest):
    "A bundle that learns in a second"
    labels = [i.label for i in division.train]
    names = sorted(set(labels))
    shown = [Image.open(i.file) for i in division.train]
    write_bundle(Bundle(names, (64, 64), threshold=.7), fit_pixels(shown, labels, names, penalty=.0005, steps=500), dest, '# Campsite\n')

class SeededRule(ReviewRule):
    "Choose the same answers in each run, though their ids differ"
    lot = np.random.default_rng(7)
    def choose(self, columns):
        q = self.probability(columns['trusted'], columns['confidence'])
        return np.where(self.lot.random(len(q)) < q, q, np.nan)

class Year:
    "The campsite, its ranger and its models, day by day"
    def __init__(self, site, folder, trainer, n_old=300):
        SeededRule.lot = np.random.default_rng(7)
        self.site = site
        self.trainer = trainer
        self.folder = Path(folder)
        self.bears = self.folder/'bears'
        self.camera = self.folder/'camera'
        self.camera.mkdir()
        self.now = site.start
        self.today = 0
        self.days = []
        for i, (animal, image) in enumerate(site.old_images(n_old)):
            (self.bears/animal).mkdir(parents=True, exist_ok=True)
            image.save(self.bears/animal/f'old-{i}.png')
        self.log = PredictionLog(self.folder/'predictions.sqlite')
        self.registry = Registry(self.folder/'models')
        self.first = self.add_first()
        self.rollout = Rollout(self.registry, self.log, clock=lambda: self.now)
        self.writer = LogWriter(self.log, max_waiting=10_000, linger=.5)
        self.supervised = Supervised(self.first, self.rollout, self.writer)

    def add_first(self):
        "Train the first model on the old images, and make it the champion"
        class Everything: pass
        division = Everything()
        division.train = checked_images(self.bears, self.log)
        division.folder = self.bears
        division.exclude = []
        self.trainer(division, self.folder/'first')
        record = self.registry.add(self.folder/'first', who='Ana', why='trained in spring')
        self.registry.promote(record.id, who='Ana', why='the first model')
        return Classifier(self.registry.path('champion'))

    def live(self, n, each_day=None):
        "So many days pass; `each_day` may end that early by returning True"
        for _ in range(n):
            row = dict(day=self.today, stage=self.rollout.state.stage, visits=0, care=0, plain=0, looked=0)
            for visit in self.site.visits(self.today):
                self.now = visit.time
                self.pass_by(visit, row)
            self.days.append(row)
            self.today += 1
            self.now = self.site.start + day*self.today
            self.writer.flush()
            if self.today % 2 == 0: self.rollout.look('Ranger')
            if self.rollout.watch: self.rollout.watch.update()
            if each_day and each_day(): return

    def pass_by(self, visit, row):
        "One image: who decides, what people get, and what the ranger says"
        file = self.camera/f'{visit.name}.png'
        visit.image.save(file)
        outcome = self.supervised.answer(file, visit.place, visit.name, file.name, visit.time)
        champion = self.supervised.models['champion']
        plain = outcome.said['champion'] if champion is self.first else self.first.predict(file).label
        row['visits'] += 1
        row['plain'] += plain != visit.animal
        row['care'] += outcome.decides == 'model' and outcome.label != visit.animal
        if outcome.chosen is None: file.unlink()
        else:
            row['looked'] += 1
            self.supervised.decide(outcome, visit.animal, 'Ranger')

    def until_ready(self, why, scope=None, most=60):
        "Live until the criteria of the next stage are met, and take the step"
        def step():
            try: self.rollout.up('Ranger', why, scope)
            except NotReady as e:
                self.missing = str(e)
                return False
            return True
        before = self.rollout.state.changes
        self.live(most, step)
        return self.rollout.state.changes > before

    def reviewing(self, share):
        "From now on, the ranger looks at this share of the model's answers"
        self.supervised.review = SeededRule(share, even=1)

    def columns(self, since):
        "All answers of the log since a time"
        names = ('answer', 'time', 'place', 'role', 'pair', 'label', 'right', 'correct', 'chosen', 'model')
        chunks = list(self.log.read(names, since, shadow=True))
        return {name: np.concatenate([c[name] for c in chunks]) for name in names}

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

def summary(days):
    "Shares and hours of a year"
    n = sum(d['visits'] for d in days)
    looked = sum(d['looked'] for d in days)
    return dict(visits=n, wrong_care=sum(d['care'] for d in days)/n, wrong_plain=sum(d['plain'] for d in days)/n, looked=looked/n,
        hours_looked=looked*10/3600, hours_saved=(n - looked)*10/3600)

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
        year = Year(Campsite(args.data, args.per_day), folder, trainer)
        told = play(year, args.days)
        year.writer.close()
        events = [dict(time=moment_words(e.time), who=e.who or 'by itself', what=e.words, why=e.why) for e in year.rollout.record.events
            if e.kind != 'look']
    for e in events: print(f"{e['time']}  {e['who']}: {e['what']}. {e['why']}")
    told = {k: v if isinstance(v, (int, dict)) else getattr(v, 'words', None) or getattr(v, 'decision', '') for k, v in told.items()}
    save(dict(kind='photographs' if args.data else 'drawn', **summary(year.days), told=told, seconds=time.time() - begun, events=events,
        days=year.days), args.out, ('days', 'events'))
