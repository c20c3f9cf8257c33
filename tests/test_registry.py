"A registry stays whole: killed programs, several promoters, readers meanwhile, hostile names, a remote store"
import json, os, random, shutil, signal, subprocess, sys, textwrap, threading, time
from collections import Counter
from dataclasses import asdict
import pytest
from PIL import Image
from bearcls.cli import main
from bearcls.inference.bundle import read_bundle, sign_bundle
from bearcls.inference.files import BundleError
from bearcls.inference.signature import make_keys
from bearcls.rollout.registry import Conflict, Registry, RegistryError, max_past, resolve_bundle
from bearcls.sample.standins import colour_model
from bearcls.stores import DiskStore, open_store
from notebooks import root
from tiny_bundle import make_bundle

def make_bundles(folder, n, extra=0):
    "Bundles of different models; `extra` makes their cards larger, so that copying takes longer"
    found = []
    for k in range(n):
        path = make_bundle(folder/f'bundle{k}', model=colour_model(sharpness=50 + k))
        if extra: (path/'README.md').write_text(f'{k}\n' + 'bears '*extra)
        found.append(path)
    return found

def start(code, *arguments):
    "Python in a process of its own, which says `ready` once it has imported everything"
    head = 'import sys\nfrom bearcls.rollout.registry import *\nprint("ready", flush=True)\n'
    return subprocess.Popen([sys.executable, '-c', head + textwrap.dedent(code), *map(str, arguments)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': str(root)})

def check_whole(registry):
    "Every promise that a reader may rely on"
    history = registry.history()
    assert [c.number for c in history] == list(range(1, len(history) + 1))
    ids = [m.id for m in registry.models()]
    assert {row['status'] for row in registry.check() if row['model'] in ids} <= {'ok'}
    for alias, id in registry.aliases().items():
        assert id in ids and read_bundle(registry.path(alias)).digest == registry.model(alias).digest
    last = {}
    for c in history:
        if c.alias: last[c.alias] = c.model
        if c.action == 'add': assert c.model in c.models
    assert {a: m for a, m in last.items() if m} == {a: m for a, m in registry.aliases().items() if a != 'previous'}
    return ids

# ---------------------------------------------------------------- killed at any point

work = '''
import itertools
registry = Registry(sys.argv[1])
bundles = sys.argv[2:]
for i in itertools.count():
    for b in bundles[2:]:
        m = registry.add(b, who='worker')
        registry.promote(m.id, who='worker')
        registry.promote(registry.models()[0].id, who='worker')
        registry.rollback(who='worker')
        registry.promote(registry.models()[1].id, who='worker')
        for k in range(6): registry.promote(registry.models()[k % 2].id, who='worker')
        registry.remove(m.id, who='worker')
'''

def test_killed_at_any_point(tmp_path):
    bundles = make_bundles(tmp_path, 4, 20_000)
    registry = Registry(tmp_path/'models')
    for b in bundles[:2]: registry.add(b)
    registry.promote(registry.models()[0].id)
    rng = random.Random(42)
    left = Counter()
    known = set()
    for _ in range(25):
        worker = start(work, registry.folder, *bundles)
        try:
            worker.stdout.readline()
            time.sleep(rng.uniform(0, .25))
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        ids = check_whole(registry)
        hidden = list((tmp_path/'models').rglob('.*.part'))
        unlisted = [r for r in registry.check() if r['status'] == 'not listed']
        left.update(half_written=bool({*hidden} - known), not_listed=bool(unlisted))
        known |= {*hidden}
        assert {bundle.digest for bundle in map(read_bundle, bundles[:2])} <= {m.digest for m in registry.models()} and len(ids) <= 4
    print(dict(left), f'{len(registry.history())} changes')
    for f in (tmp_path/'models'/'changes').glob('.*.part'): os.utime(f, (0, 0))  # an hour has passed
    registry.add(bundles[2])  # and the next add removes what was left
    assert list((tmp_path/'models').rglob('.*.part')) == []
    check_whole(registry)

def test_the_folder_of_a_killed_add_is_taken_over(tmp_path, monkeypatch):
    "Between the bundle's folder and the change that lists it"
    bundles = make_bundles(tmp_path, 2)
    registry = Registry(tmp_path/'models')
    registry.add(bundles[0])
    with monkeypatch.context() as m:
        m.setattr(Registry, '_commit', lambda *args, **kwargs: 1/0)
        with pytest.raises(ZeroDivisionError): registry.add(bundles[1])
    assert len(registry.models()) == 1
    assert [r['status'] for r in registry.check()] == ['ok', 'not listed']
    record = registry.add(bundles[1])
    assert [m.id for m in registry.models()][1] == record.id and {r['status'] for r in registry.check()} == {'ok'}

# ---------------------------------------------------------------- several programs

promoter = '''
registry = Registry(sys.argv[1])
for line in sys.stdin:
    name, expected = line.split()
    try: print('won', registry.promote(name, who=name, why='mine', expected=expected).model, flush=True)
    except Conflict as e: print('lost', e.change.model, flush=True)
'''

def test_one_of_two_promoters_wins(tmp_path):
    registry = Registry(tmp_path/'models')
    ids = [registry.add(b).id for b in make_bundles(tmp_path, 3)]
    registry.promote(ids[2])
    workers = [start(promoter, registry.folder) for _ in range(2)]
    seen = Counter()
    try:
        for w in workers: w.stdout.readline()
        for _ in range(60):
            before = registry.aliases()['champion']
            names = [i for i in ids if i != before]
            for w, name in zip(workers, names):
                w.stdin.write(f'{name} {before}\n')
                w.stdin.flush()
            said = [w.stdout.readline().split() for w in workers]
            assert sorted(word for word, _ in said) == ['lost', 'won']
            now = registry.aliases()['champion']
            assert {id for _, id in said} == {now} and now != before
            seen[next(i for i, (word, _) in enumerate(said) if word == 'won')] += 1
    finally:
        for w in workers: w.stdin.close(), w.wait()
    print(dict(seen))
    assert len(registry.history()) == 3 + 1 + 60
    check_whole(registry)

adder = '''
registry = Registry(sys.argv[1])
for b in sys.argv[2:]: print(registry.add(b).id, flush=True)
'''

def test_several_add_the_same_bundles(tmp_path):
    bundles = make_bundles(tmp_path, 6)
    registry = Registry(tmp_path/'models')
    workers = [start(adder, registry.folder, *(bundles if k % 2 else bundles[::-1])) for k in range(3)]
    said = [w.communicate()[0].split()[1:] for w in workers]
    assert [w.returncode for w in workers] == [0]*3
    ids = check_whole(registry)
    assert len(ids) == 6 and all(sorted(s) == sorted(ids) for s in said)
    assert [c.action for c in registry.history()] == ['add']*6

def test_changes_of_other_aliases_do_not_conflict(tmp_path):
    registry = Registry(tmp_path/'models')
    ids = [registry.add(b).id for b in make_bundles(tmp_path, 2)]
    errors = []
    def move(alias):
        try:
            for k in range(30): registry.promote(ids[k % 2], alias)
        except Exception as e: errors.append(e)
    threads = [threading.Thread(target=move, args=[f'alias{k}']) for k in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert errors == [] and len(registry.history()) == 2 + 4*30
    check_whole(registry)

def test_readers_while_others_write(tmp_path):
    bundles = make_bundles(tmp_path, 4)
    registry = Registry(tmp_path/'models')
    for b in bundles[:2]: registry.add(b)
    registry.promote(registry.models()[0].id)
    worker = start(work, registry.folder, *bundles)
    seen = Counter()
    try:
        worker.stdout.readline()
        for k in range(400):
            path = resolve_bundle(f'{registry.folder}@champion')
            try: seen[read_bundle(path).digest[:6]] += 1
            except BundleError: assert not path.exists()  # the worker has removed it meanwhile
            if k % 40 == 0: assert len(registry.history()) >= 3  # it reads every change
            assert 2 <= len(registry.aliases()) + 1
    finally:
        worker.kill()
        worker.wait()
    print(dict(seen))
    assert len(seen) > 1

# ---------------------------------------------------------------- names that lead elsewhere

def test_hostile_names(tmp_path):
    registry = Registry(tmp_path/'models')
    id = registry.add(*make_bundles(tmp_path, 1)).id
    registry.promote(id)
    (tmp_path/'secret').mkdir()
    for name in ('../../secret', '..', '.', '', '/', '*', id[:3], 'nobody', 'cafe', '\0', 'é'*50, id + '-0000', id + '/..', '00000001.json', 'x'*100_000):
        with pytest.raises(RegistryError, match='is no model or alias'): registry.model(name)
        for call in (registry.path, registry.promote, registry.remove):
            with pytest.raises(RegistryError): call(name)
    for alias in ('', '../x', 'Champion', 'a b', '-x', 'previous', 'x'*41, 'é', 'a\n', 'a/b', '1st'):
        with pytest.raises(ValueError, match='`alias` must'): registry.promote(id, alias=alias)
        with pytest.raises(ValueError, match='`alias` must'): registry.set_alias(alias, None)
    for text in ('x'*501, 'red \x1b[31m', 'a\x00'):
        with pytest.raises(ValueError, match='`why` must be printable'): registry.promote(id, why=text)
    assert len(registry.history()) == 2

def test_forged_files(tmp_path):
    registry = Registry(tmp_path/'models')
    id = registry.add(*make_bundles(tmp_path, 1)).id
    change = tmp_path/'models'/'changes'/'00000002.json'
    good = asdict(registry.history()[0]) | dict(number=2)
    for wrong in (dict(models=['../../etc']), dict(aliases={'champion': '/etc'}), dict(aliases={'../x': id}), dict(past={'champion': 'x'}),
                  dict(model=7), dict(action='<script>'), dict(models=3), dict(aliases=[]), dict(number='2')):
        change.write_text(json.dumps(good | wrong))
        with pytest.raises(RegistryError, match='damaged'): registry.aliases()
    for text in ('', '[', '[]', 'null', '[['*50_000):
        change.write_text(text)
        with pytest.raises(RegistryError, match='damaged'): registry.models()
    change.unlink()
    (tmp_path/'models'/'changes'/'notes.txt').write_text('mine')
    assert [m.id for m in registry.models()] == [id]
    record = tmp_path/'models'/'models'/id/'record.json'
    for text in ('', '[]', '{"id": "../x"}'):
        record.write_text(text)
        with pytest.raises(RegistryError, match='record'): registry.models()

def test_html_is_escaped(tmp_path):
    registry = Registry(tmp_path/'models')
    registry.add(*make_bundles(tmp_path, 1), who='<b>x', why='<script>')
    assert '<script>' not in registry._repr_html_() + registry.history()[0]._repr_html_() + registry.models()[0]._repr_html_()

# ---------------------------------------------------------------- addresses

def test_addresses(tmp_path):
    registry = Registry(tmp_path/'models')
    id = registry.add(*make_bundles(tmp_path, 1)).id
    registry.promote(id)
    for name in ('champion', id, id[:5]): assert resolve_bundle(f'{registry.folder}@{name}').name == id
    odd = tmp_path/'a@b'
    shutil.copytree(tmp_path/'bundle0', odd)
    assert resolve_bundle(odd) == odd
    assert resolve_bundle(tmp_path/'x@y'/'bundle') == tmp_path/'x@y'/'bundle'
    shutil.copytree(registry.folder, tmp_path/'c@d')
    assert resolve_bundle(f'{tmp_path}/c@d@champion').name == id
    with pytest.raises(RegistryError, match='there are no models in'): resolve_bundle(f'{tmp_path}/nothing@champion')
    with pytest.raises(RegistryError, match='is no model or alias'): resolve_bundle(f'{registry.folder}@nobody')
    assert not (tmp_path/'nothing').exists()

def test_signatures(tmp_path):
    secret, public = make_keys(tmp_path/'mine')
    _, other = make_keys(tmp_path/'other')
    first, second = make_bundles(tmp_path, 2)
    loose = Registry(tmp_path/'models')
    a = loose.add(first).id
    sign_bundle(second, secret)
    b = loose.add(second)
    assert b.signed
    strict = Registry(tmp_path/'models', public)
    assert strict.promote(b.id).model == b.id
    with pytest.raises(BundleError, match='is not signed'): strict.promote(a)
    with pytest.raises(BundleError, match='is not signed'): resolve_bundle(f'{loose.folder}@{a}', public)
    with pytest.raises(BundleError, match='was not signed with the given key'): resolve_bundle(f'{loose.folder}@champion', other)
    assert loose.aliases() == dict(champion=b.id)

# ---------------------------------------------------------------- rollback and removal

def test_many_rollbacks(tmp_path):
    registry = Registry(tmp_path/'models')
    ids = [registry.add(b).id for b in make_bundles(tmp_path, max_past + 3)]
    for i in ids: registry.promote(i)
    for i in reversed(ids[-1 - max_past:-1]): assert registry.rollback().model == i
    with pytest.raises(RegistryError, match='no earlier model'): registry.rollback()
    with pytest.raises(Conflict): registry.rollback(expected=ids[0])
    registry.set_alias('champion', None)
    assert 'champion' not in registry.aliases() and registry.rollback().model == ids[-1 - max_past]
    assert registry.promote(ids[-1 - max_past]).action == 'rollback'  # nothing new to write
    check_whole(registry)

def test_removed_and_added_again(tmp_path):
    registry = Registry(tmp_path/'models')
    bundles = make_bundles(tmp_path, 2)
    a, b = (registry.add(x) for x in bundles)
    registry.promote(a.id, alias='night')
    with pytest.raises(RegistryError, match='is `night`'): registry.remove(a.id)
    registry.remove(b.id)
    with pytest.raises(RegistryError): registry.promote(b.id)
    again = registry.add(bundles[1])
    assert again.id == b.id and [m.id for m in registry.models()] == [a.id, b.id]
    shutil.rmtree(tmp_path/'models'/'models'/b.id)
    assert [r['status'] for r in registry.check()] == ['ok', 'damaged']
    with pytest.raises(RegistryError, match='are gone'): registry.model(b.id)

# ---------------------------------------------------------------- elsewhere

def test_remote(tmp_path, monkeypatch):
    monkeypatch.setenv('BEARCLS_CACHE', str(tmp_path/'cache'))
    url = f'memory://{os.urandom(6).hex()}/models'
    registry = Registry(url)
    bundles = make_bundles(tmp_path, 3)
    a, b, c = (registry.add(x) for x in bundles)
    assert registry.add(bundles[0]) == a
    registry.promote(a.id)
    registry.promote(b.id, expected=a.id)
    with pytest.raises(Conflict): registry.promote(c.id, expected=a.id)
    path = resolve_bundle(f'{url}@champion')
    assert read_bundle(path).digest == b.digest and tmp_path in path.parents
    assert sorted(f.name for f in path.iterdir()) == sorted(f.name for f in bundles[1].iterdir())
    assert registry.rollback().model == a.id
    registry.remove(c.id)
    assert [r['status'] for r in registry.check()] == ['ok', 'ok']
    store = open_store(url)
    store.fs.pipe_file(f'{store.root}/models/{a.id}/README.md', b'forged')
    with pytest.raises(RegistryError, match='are not those that were added'): resolve_bundle(f'{url}@champion')

def test_without_hard_links(tmp_path, monkeypatch):
    "As on a card formatted with FAT"
    def refuse(*args): raise OSError(95, 'Operation not supported')
    monkeypatch.setattr(os, 'link', refuse)
    registry = Registry(tmp_path/'models')
    ids = [registry.add(b).id for b in make_bundles(tmp_path, 2)]
    registry.promote(ids[0])
    registry.promote(ids[1], expected=ids[0])
    store = DiskStore(registry.folder)
    assert store.create('changes/00000001.json', b'x') is False
    check_whole(registry)

def test_fsspec_is_not_needed_for_a_folder(tmp_path):
    code = '''
    import sys
    sys.modules['fsspec'] = None
    from bearcls.rollout.registry import Registry
    registry = Registry(sys.argv[1])
    print(registry.add(sys.argv[2]).id)
    try: Registry('s3://bucket/models')
    except ImportError as e: print(e)
    '''
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code), tmp_path/'models', *make_bundles(tmp_path, 1)], capture_output=True, text=True)
    assert done.returncode == 0 and 'pip install fsspec' in done.stdout, done.stderr

# ---------------------------------------------------------------- the command

def test_command(tmp_path, capsys):
    folder, bundles = str(tmp_path/'models'), make_bundles(tmp_path, 3)
    def run(*words, status=0):
        assert main(['models', *map(str, words)]) == status
        return capsys.readouterr()
    ids = [run('add', folder, b, '--who', 'Ana', '--why', f'number {k}').out.split()[0] for k, b in enumerate(bundles)]
    assert run('add', folder, bundles[0], '--parent', ids[1], '--json').out.startswith('{')  # there already
    assert run('promote', folder, ids[0], '--why', 'first').out == f'champion is {ids[0]}\n'
    assert run('promote', folder, ids[1][:6], '--why', 'second', '--expected', ids[0]).out == f'champion is {ids[1]}, and was {ids[0]}\n'
    assert 'second; look again' in run('promote', folder, ids[2], '--why', 'third', '--expected', ids[0], status=1).err
    assert run('rollback', folder, '--why', 'worse at night').out == f'champion is {ids[0]}, and was {ids[1]}\n'
    assert 'has no earlier model' in run('rollback', folder, '--why', 'once more', status=2).err
    assert [(m['model'], m['aliases']) for m in json.loads(run('list', folder, '--json').out)] == [(ids[0], ['champion']), (ids[1], []), (ids[2], [])]
    assert json.loads(run('show', folder, 'champion', '--json').out)['why'] == 'number 0'
    assert 'number 0' in run('show', folder, 'champion').out
    assert [r['what'] for r in json.loads(run('compare', folder, ids[0], ids[1], '--json').out)][:2] == ['labels', 'arch']
    assert [line.split()[1] for line in run('history', folder).out.splitlines()] == ['add']*3 + ['promote', 'promote', 'rollback']
    assert [c['action'] for c in json.loads(run('history', folder, '--json').out)][-1] == 'rollback'
    run('check', folder)
    (tmp_path/'models'/'models'/ids[2]/'model.onnx').write_bytes(b'broken')
    assert 'damaged' in run('check', folder, status=1).out
    assert 'there are no models in' in run('list', tmp_path/'nothing', status=2).err and not (tmp_path/'nothing').exists()
    assert 'is no model or alias' in run('show', folder, 'nobody', status=2).err
    for words in (['promote', folder, ids[0]], ['rollback', folder]):
        with pytest.raises(SystemExit): main(['models', *words])
        assert '--why' in capsys.readouterr().err

def test_signed_on_the_command_line(tmp_path, capsys):
    secret, public = make_keys(tmp_path/'mine')
    bundle, = make_bundles(tmp_path, 1)
    add = ['models', 'add', str(tmp_path/'models'), str(bundle), '--key', str(public)]
    assert main(add) == 2 and 'is not signed' in capsys.readouterr().err
    sign_bundle(bundle, secret)
    assert main(add) == 0

def test_commands_take_an_address(tmp_path, capsys):
    registry = Registry(tmp_path/'models')
    registry.promote(registry.add(*make_bundles(tmp_path, 1)).id)
    Image.new('RGB', (80, 80), (140, 100, 60)).save(tmp_path/'bear.png')
    assert main(['predict', f'{registry.folder}@champion', str(tmp_path/'bear.png')]) == 0 and 'brown' in capsys.readouterr().out
    assert main(['deploy', 'fastapi', f'{registry.folder}@champion', str(tmp_path/'served')]) == 0
    assert read_bundle(tmp_path/'served'/'bundle').digest == registry.model('champion').digest
    capsys.readouterr()
    for words in (['predict', f'{registry.folder}@nobody', 'x.png'], ['serve', f'{registry.folder}@nobody'], ['app', f'{registry.folder}@nobody', '--no-browser']):
        assert main(words) == 2 and 'is no model or alias' in capsys.readouterr().err

@pytest.mark.parametrize('module', ['bearcls.rollout.registry', 'bearcls.stores'])
def test_import_is_light(module):
    done = subprocess.run([sys.executable, '-c', f'import sys, {module}; print(*sys.modules)'], capture_output=True, text=True, check=True)
    assert {'torch', 'fastai', 'fastcore', 'pandas', 'matplotlib', 'ipywidgets', 'anywidget', 'sqlalchemy', 'fsspec', 'onnxruntime'}.isdisjoint(done.stdout.split())
