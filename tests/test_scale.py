"Large collections: storage, engines, interrupted work; the same rows wherever they are made"
import json, os, signal, subprocess, sys, threading, time
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path
import numpy as np, pytest

pytest.importorskip('pyarrow', reason='pyarrow is not installed')
from PIL import Image
from bearcls.core import DataError
from bearcls.engines import EngineError, engine_map, in_batches
from bearcls.folders import image_files
from bearcls.gather.gathering import download_collection, gather, host_part
from bearcls.gather.results import SearchResult, write_results
from bearcls.inference.bundle import Bundle, write_bundle
from bearcls.inference.classifier import Classifier
from bearcls.manifest import ImageRow, read_manifest
from bearcls.sample.bears import draw_bears
from bearcls.sample.loopback import LoopbackWeb
from bearcls.sample.odd_files import draw_odd_files
from bearcls.sample.standins import colour_model, draw_face, furs
from bearcls.scale.duplicates import hash_groups, hash_pairs
from bearcls.scale.plan import count_images, measure_work, plan_work
from bearcls.scale.predict import predict_collection, read_predictions
from bearcls.scale.storage import find_parts, pack_images, read_part, write_manifest_parts
from bearcls.similarity import near_pairs
from bearcls.verify.report import check_images

ray = pytest.mark.skipif(not __import__('importlib.util').util.find_spec('ray'), reason='Ray is not installed: pip install "bearcls[ray]"')

@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return write_bundle(Bundle(list(furs), (64, 64)), colour_model(), tmp_path_factory.mktemp('bundle')/'furs')

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "Faces under three labels, and odd and broken files among them"
    folder = tmp_path_factory.mktemp('images')/'images'
    for label, fur in furs.items():
        (folder/label).mkdir(parents=True)
        for n in range(20): draw_face(70 + n, 70, fur, fur).save(folder/label/f'{n}.png')
    for odd in draw_odd_files(): (folder/'brown'/odd.name).write_bytes(odd.data)
    (folder/'brown'/'notes').write_text('not an image')
    return folder

def contents(address, size=30): return [(i.label, i.data) for p in find_parts(address, size) for i in read_part(p)]
def answers(bundle, source): return [r.as_dict() for r in Classifier(bundle).predict_batch(source, bs=1, quiet=True)]
def filled(rows, columns): return [{c: r.get(c) for c in columns} for r in rows]
def without_actual(rows): return [{k: v for k, v in r.items() if k != 'actual'} for r in rows]

# ---------------------------------------------------------------- storage

@pytest.mark.parametrize('kind', ['webdataset', 'parquet'])
def test_packing_changes_no_byte(images, tmp_path, kind):
    n, rest = pack_images(images, tmp_path/'packed', kind, size=30)
    assert n == len(image_files(images)) and [r.kind for r in rest] == ['not_an_image']
    assert contents(tmp_path/'packed') == [c for c in contents(images) if c[1] is not None]

def test_shards_by_others(tmp_path):
    "Labels in .cls, folders in the shard, members without an image, and a compressed shard"
    import io, tarfile
    members = [('a/1.jpg', b'one'), ('a/1.cls', b'black'), ('a/2.png', b'two'), ('a/2.json', b'{"label": "brown"}'), ('b/1.json', b'[]')]
    for ending, mode in (('tar', 'w'),):
        with tarfile.open(tmp_path/f'x.{ending}', mode) as t:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    found = [i for p in find_parts(tmp_path/'x.tar') for i in read_part(p)]
    assert [(i.label, i.data) for i in found] == [('black', b'one'), ('brown', b'two'), ('', None)]
    assert found[2].problem.kind == 'not_an_image'

def test_parquet_as_hugging_face_keeps_it(tmp_path):
    import pyarrow as pa, pyarrow.parquet as pq
    table = pa.Table.from_pylist([dict(image=dict(bytes=b'one', path='1.jpg'), label=3), dict(image=None, label=1)])
    pq.write_table(table, tmp_path/'x.parquet')
    found = [i for p in find_parts(tmp_path/'x.parquet') for i in read_part(p)]
    assert [(i.label, i.data) for i in found] == [('3', b'one'), ('1', None)]
    with pytest.raises(DataError, match='`image`.*is expected'):
        pq.write_table(pa.table(dict(other=[b'x'])), tmp_path/'y.parquet')
        list(read_part(find_parts(tmp_path/'y.parquet')[0]))

@pytest.fixture(scope='module')
def s3(tmp_path_factory):
    "A server that behaves like S3, on this machine"
    moto = pytest.importorskip('moto.server', reason='moto is not installed')
    pytest.importorskip('s3fs', reason='s3fs is not installed')
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ.update(AWS_ENDPOINT_URL=f'http://127.0.0.1:{port}', AWS_ACCESS_KEY_ID='test', AWS_SECRET_ACCESS_KEY='test', AWS_DEFAULT_REGION='us-east-1')
    import s3fs
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir('archive')
    yield 's3://archive'
    server.stop()
    os.environ.clear()
    os.environ.update(before)

def test_s3(s3, images, bundle, tmp_path):
    import s3fs
    fs = s3fs.S3FileSystem()
    for f in sorted(images.rglob('*')):
        if f.is_file(): fs.pipe_file(f'archive/images/{f.relative_to(images).as_posix()}', f.read_bytes())
    pack_images(images, f'{s3}/shards', size=30)
    assert contents(f'{s3}/shards') == contents(images)[:-1]
    expected = answers(bundle, images)
    done = predict_collection(bundle, f'{s3}/images', f'{s3}/answers', size=30)
    rows = list(read_predictions(f'{s3}/answers'))
    assert done.images == len(expected) == len(rows)
    def by_name(rows): return {r['file'].split('/images/')[-1]: {k: v for k, v in r.items() if k not in ('file', 'reason', 'actual')} for r in rows}
    assert by_name(rows) == by_name(filled(expected, rows[0]))
    again = predict_collection(bundle, f'{s3}/images', f'{s3}/answers', size=30)
    assert again.done_before == again.parts and list(read_predictions(f'{s3}/answers')) == rows

def test_no_such_place(tmp_path):
    with pytest.raises(DataError, match='There is nothing at'): find_parts(tmp_path/'no')
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='holds no images'): find_parts(tmp_path/'empty')
    with pytest.raises(ImportError, match='gcs'): find_parts('gs://bucket/x')

# ---------------------------------------------------------------- predictions

def test_collection_answers_as_a_batch(images, bundle, tmp_path):
    predict_collection(bundle, images, tmp_path/'out', size=17)
    rows = list(read_predictions(tmp_path/'out'))
    assert without_actual(rows) == without_actual(filled(answers(bundle, images), rows[0]))
    assert {r['status'] for r in rows} == {'ok', 'failed', 'skipped'} and {r['actual'] for r in rows if r['status'] != 'skipped'} == set(furs)

def test_another_job_is_refused(images, bundle, tmp_path):
    predict_collection(bundle, images, tmp_path/'out', size=50)
    before = {f.name: f.read_bytes() for f in (tmp_path/'out').iterdir()}
    other = write_bundle(Bundle(list(furs), (64, 64)), colour_model(sharpness=61), tmp_path/'other')
    with pytest.raises(DataError, match='of another model'): predict_collection(other, images, tmp_path/'out', size=50)
    with pytest.raises(DataError, match='other parts'): predict_collection(bundle, images, tmp_path/'out', size=51)
    with pytest.raises(DataError, match='of another collection'): predict_collection(bundle, images/'black', tmp_path/'out', size=50)
    assert {f.name: f.read_bytes() for f in (tmp_path/'out').iterdir()} == before
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/letter.txt').write_text('dear')
    with pytest.raises(DataError, match='holds something'): predict_collection(bundle, images, tmp_path/'mine')

killed = '''
import sys
from bearcls.scale.predict import predict_collection
print('begin', flush=True)
predict_collection(*sys.argv[1:4], size=5, quiet=True)
'''

def test_the_driver_is_killed(images, bundle, tmp_path):
    "Killed at twenty moments: each image has one row in the end, and what was there is never half"
    expected = answers(bundle, images)
    random = np.random.default_rng(0)
    stopped = 0
    for _ in range(20):
        run = subprocess.Popen([sys.executable, '-c', killed, str(bundle), str(images), str(tmp_path/'out')], stdout=subprocess.PIPE)
        run.stdout.readline()
        time.sleep(float(random.uniform(0, .6)))
        stopped += run.poll() is None
        run.kill()
        run.wait()
        if list((tmp_path/'out').glob('predictions-*')) if (tmp_path/'out').exists() else []: assert list(read_predictions(tmp_path/'out'))
    assert stopped > 3
    for part in (tmp_path/'out').glob('.*.part'): part.unlink()
    predict_collection(bundle, images, tmp_path/'out', size=5, quiet=True)
    rows = list(read_predictions(tmp_path/'out'))
    assert without_actual(rows) == without_actual(filled(expected, rows[0]))

# ---------------------------------------------------------------- duplicates

@pytest.mark.parametrize('distance', [0, 4, 11])
def test_pairs_of_the_one_machine_version(distance):
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, 6000, np.uint64)
    for n in range(3000):
        bits = random.choice(64, random.integers(0, 14), replace=False)
        for b in bits: hashes[3000 + n] = hashes[n] ^ np.uint64(1 << int(b)) if b == bits[0] else hashes[3000 + n] ^ np.uint64(1 << int(b))
    hashes = np.unique(hashes)
    random.shuffle(hashes)
    here = near_pairs(hashes, hashes, distance)
    here = here[here[:, 0] < here[:, 1]]
    assert np.array_equal(hash_pairs(hashes, distance, quiet=True), here[np.lexsort(here.T[::-1])])
    assert len(here) == 0 if distance == 0 else len(here) > 500

def test_many_of_the_same():
    "A thousand black frames are one group, and no million pairs"
    hashes = np.array([7]*1000 + [2**40]*3 + [2**63], np.uint64)
    assert len(hash_pairs(hashes, 0, quiet=True)) == 999 + 2
    assert Counter(hash_groups(hashes, max_distance=0, quiet=True).tolist()) == {0: 1000, 1000: 3, 1003: 1}

# ---------------------------------------------------------------- gathering

def png(n):
    import io
    file = io.BytesIO()
    draw_face(60 + n, 60, furs['brown'], furs['brown']).save(file, 'png')
    return file.getvalue()

def test_a_host_has_one_part():
    hosts = [host_part(f'https://host{n}.org/{k}', 64) for n in range(500) for k in range(2)]
    assert hosts[::2] == hosts[1::2] and len(set(hosts)) > 55
    assert host_part('not an address', 64) == host_part('', 64)

def test_several_hosts_one_folder(tmp_path):
    "Rows in the order of addresses, one file for the same bytes of two hosts, and an older manifest stays"
    pages = [{f'/{n}.png': png(n) for n in range(k, k + 6)} for k in (0, 4)]
    with LoopbackWeb(pages[0]) as one, LoopbackWeb(pages[1]) as two:
        addresses = [f'{one.url}{p}' for p in pages[0]] + [f'{two.url.replace("127.0.0.1", "localhost")}{p}' for p in pages[1]] + [f'{one.url}/no.png']
        rows = download_collection(tmp_path/'bears', addresses, 'brown', allow_private=True)
        assert [r.url for r in rows] == addresses
        assert Counter(r.status for r in rows) == dict(ok=10, duplicate=2, failed=1)
        again = download_collection(tmp_path/'bears', addresses[:3], 'brown', allow_private=True)
    assert [r.status for r in again] == ['ok']*3
    assert len(image_files(tmp_path/'bears')) == 10 and len(read_manifest(tmp_path/'bears')) == 13
    assert not (tmp_path/'bears/.bearcls-parts').exists()

# ---------------------------------------------------------------- plan

def test_plan(images, bundle, tmp_path):
    rates = measure_work(bundle, images, n=40)
    assert rates.images == 40 and rates.rate > 0 and rates.bottleneck in ('read', 'open', 'answer')
    one, eight = (plan_work(rates, 10**7, m, cores=4, price=2.) for m in (1, 8))
    assert one.hours/eight.hours == pytest.approx(8, .02) and one.cost == pytest.approx(eight.cost, .02)
    assert count_images(images) == len(image_files(images))
    pack_images(images, tmp_path/'packed', size=30)
    assert count_images(tmp_path/'packed') == pytest.approx(len(image_files(images)), .02)  # all parts but the last are alike

# ---------------------------------------------------------------- heads

@pytest.mark.parametrize('arch', ['resnet18', 'xresnet18_thin'])
def test_a_head_of_an_archive(tmp_path, arch):
    "The new bundle answers what the fitted head says about the features; other layers stay as they are"
    pytest.importorskip('fastai')
    import torch
    from fastai.vision.learner import vision_learner
    from bearcls.data.loaders import image_dls
    from bearcls.export.convert import export_bundle
    from bearcls.scale.heads import feature_batches, fit_head, replace_head
    from bearcls.train.arch import TrainError, get_arch
    from bearcls.train.learner import train
    bears = draw_bears(tmp_path/'bears', 12, 90, seed=1, faults=False)
    dls = image_dls(bears, size=64)
    learn = vision_learner(dls, get_arch(arch), pretrained=False) if arch == 'resnet18' else train(dls, route='drawn', seed=1, epochs=1)
    bundle = export_bundle(learn, tmp_path/'first', temperature=1., ood_score=False)
    predict_collection(bundle, bears, tmp_path/'answers', size=10, features=True)
    fitted = fit_head(tmp_path/'answers', learn.dls.vocab, passes=5, bs=8, quiet=True)
    assert fitted.losses[-1] < fitted.losses[0] and fitted.images == {label: 12 for label in learn.dls.vocab}
    x, y = next(feature_batches(tmp_path/'answers', learn.dls.vocab, 100))
    assert len(x) == 36 and y.tolist() == sorted(y.tolist())
    second = export_bundle(replace_head(learn, fitted), tmp_path/'second', temperature=1., ood_score=False)
    predict_collection(second, bears, tmp_path/'again', size=10)
    said = np.array([[row[f'p_{v}'] for v in learn.dls.vocab] for row in read_predictions(tmp_path/'again')])
    with torch.no_grad(): expected = fitted.head(x).softmax(1).numpy()
    assert abs(said - expected).max() < .002
    if arch == 'resnet18': return
    with pytest.raises(TrainError, match='of 1024 features there'): replace_head(vision_learner(dls, get_arch('resnet18'), pretrained=False), fitted)

# ---------------------------------------------------------------- engines

def test_threads_and_lists():
    assert list(engine_map(lambda n: n + 1, range(10))) == list(range(1, 11))
    assert list(engine_map(lambda some: [sum(some)]*len(some), range(4), n_items=2, by_list=True)) == [1, 1, 5, 5]
    assert list(in_batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ValueError, match='address of a Ray cluster'): list(engine_map(str, [1], 'spark'))

@pytest.fixture(scope='module')
def cluster():
    "Ray on this machine, for all tests of the file"
    module = pytest.importorskip('ray')
    module.init(num_cpus=2, include_dashboard=False, logging_level='error', log_to_driver=False)
    yield module
    module.shutdown()

@ray
def test_ray_gives_the_same_rows(cluster, images, bundle, tmp_path):
    classifier = Classifier(bundle)
    here = classifier.predict_batch(images, bs=1, quiet=True)
    assert classifier.predict_batch(images, quiet=True, engine='ray') == here
    assert check_images(images, engine='ray').rows == (report := check_images(images)).rows
    assert list(check_images(images, engine='ray').measures) == list(report.measures)
    files = image_files(images)
    for a, b in zip(classifier.features(files, engine='ray'), classifier.features(files)):
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
    predict_collection(bundle, images, tmp_path/'there', 'ray', size=17)
    predict_collection(bundle, images, tmp_path/'here', size=17)
    assert list(read_predictions(tmp_path/'there')) == list(read_predictions(tmp_path/'here'))

@ray
def test_ray_evaluates_and_finds_issues(cluster, tmp_path, bundle):
    pytest.importorskip('fastai')
    from bearcls.interpret.evaluate import evaluate
    from bearcls.interpret.label_issues import find_issues
    folder = tmp_path/'images'
    for label, fur in furs.items():
        (folder/label).mkdir(parents=True)
        for n in range(20): draw_face(70 + n, 70, fur, fur).save(folder/label/f'{n}.png')
    Image.open(folder/'brown/3.png').save(folder/'brown/copy.png')
    there, here = evaluate(bundle, path=folder, engine='ray'), evaluate(bundle, path=folder)
    assert there.table.equals(here.table) and np.array_equal(there.features, here.features)
    assert find_issues(there, engine='ray').equals(find_issues(here))

@ray
def test_ray_raises_what_the_function_raises(cluster):
    def odd(n):
        if n == 70: raise DataError('seventy is no image')
        return n
    with pytest.raises(DataError, match='seventy'): list(engine_map(odd, range(200), 'ray', 2))

@ray
def test_an_item_that_kills_is_found(cluster):
    def deadly(n):
        if n == 123: os.kill(os.getpid(), signal.SIGKILL)  # ends without a word, as a decoder with a fault does
        return n
    found = list(engine_map(deadly, range(200), 'ray', 2, lost=lambda n: 'lost'))
    assert [n for n in range(200) if found[n] != n] == [123] and found[123] == 'lost'
    with pytest.raises(EngineError, match='123 died'): list(engine_map(deadly, range(100, 130), 'ray', 2))

@ray
def test_what_the_processes_cannot_load(cluster):
    "Ray sends a function of a module by its name, and the processes don't know this module"
    with pytest.raises(EngineError, match="could not begin.*test_scale"): list(engine_map(png, range(3), 'ray', 1))

@contextmanager
def killing(seed, between=(1, 2)):
    "Kills a process of Ray that works for us, again and again; its list grows with each"
    stop, kills, random = threading.Event(), [], np.random.default_rng(seed)
    def kill():
        while not stop.wait(float(random.uniform(*between))) and len(kills) < 20:
            found = subprocess.run(['pgrep', '-f', 'ray::.*MapWorker'], capture_output=True, text=True).stdout.split()
            if not found: continue
            os.kill(victim := int(random.choice(found)), signal.SIGKILL)
            kills.append(victim)
    thread = threading.Thread(target=kill)
    thread.start()
    try: yield kills
    finally:
        stop.set()
        thread.join()

@ray
def test_workers_are_killed(cluster, images, bundle, tmp_path):
    "Processes that work at a collection are killed, and no row is lost or comes twice"
    expected = answers(bundle, images)
    with killing(2) as kills: predict_collection(bundle, images, tmp_path/'out', 'ray', size=2, quiet=True)
    rows = list(read_predictions(tmp_path/'out'))
    assert without_actual(rows) == without_actual(filled(expected, rows[0])) and kills

def listing(folder): return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob('*') if f.is_file()}

@ray
@pytest.mark.parametrize('killed', [False, True])
def test_ray_gathers(cluster, tmp_path, killed):
    "Searched and downloaded with Ray: the rows, files and manifest of one process, even if processes are killed on the way"
    hosts = [f'127.0.0.{n}' for n in range(1, 9)]
    with LoopbackWeb({f'/{n}.png': png(n) for n in range(40)}, delay=(.3, .1) if killed else (0, 0), hosts=hosts) as web:
        addresses = [f'http://{hosts[n % 8]}:{web.port}/{n}.png' for n in range(44)]  # the last four are missing
        write_results(tmp_path/'found.json', [SearchResult(a, title='brown bear', term='brown') for a in addresses])
        search = dict(source=tmp_path/'found.json')
        def run(name, **options): return gather({'brown': 'brown bear'}, tmp_path/name, 'local', search=search, allow_private=True, per_host=1, **options)
        here = run('here')
        with killing(3, (.3, .6)) if killed else nullcontext() as kills: there = run('there', engine='ray')
    assert Counter(r.status for r in there) == dict(ok=40, failed=4)
    assert there == here and listing(tmp_path/'there') == listing(tmp_path/'here')
    assert kills if killed else kills is None

def test_with_an_engine_there_is_no_enough(tmp_path):
    with pytest.raises(ValueError, match='`enough` works in one process'): gather({'brown': 'brown bear'}, tmp_path/'no', 'local', engine='ray', enough=3)
    assert not (tmp_path/'no').exists()

# ---------------------------------------------------------------- several processes train

training = '''
import os, sys
from fastai.torch_core import rank_distrib
from bearcls.data.loaders import image_dls
from bearcls.scale.processes import distributed, run_distributed
from bearcls.train.learner import fit, make_learner, plan_training
import torch

def work():
    learn = make_learner(image_dls(sys.argv[1], size=32, bs=8), plan_training('drawn', epochs=3))
    with distributed(learn): fit(learn, early_stop=2, checkpoint='checkpoint')
    learn.export(os.path.abspath('bears.pkl'))
    torch.save((learn.training_log.rows, learn.model.state_dict()), f'{rank_distrib()}.pth')

if __name__ == '__main__': run_distributed(work)
'''

def test_a_script_for_several_processes(tmp_path):
    "Started twice: two processes end with equal weights, one of them writes, and the second start finds all done"
    pytest.importorskip('accelerate', reason='Accelerate is not installed: pip install "bearcls[accelerate]"')
    import torch
    bears = draw_bears(tmp_path/'bears', 12, 60, faults=False)
    (tmp_path/'train.py').write_text(training)
    def run():
        done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', 'train.py', str(bears)], cwd=tmp_path,
            capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return [torch.load(tmp_path/f'{n}.pth') for n in range(2)]
    (rows, weights), (rows_2, weights_2) = first = run()
    assert len(rows) == 3 and [r['valid_loss'] for r in rows] == pytest.approx([r['valid_loss'] for r in rows_2])
    assert all(torch.equal(w, weights_2[k]) for k, w in weights.items() if 'running' not in k)
    assert [f.name for f in (tmp_path/'checkpoint').iterdir()] == ['checkpoint.pth']
    again = run()
    assert again[0][0] == first[0][0] and all(torch.equal(w, weights[k]) for k, w in again[0][1].items())
