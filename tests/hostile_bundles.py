"Bundles made to do harm: each function below yields names and makes files; see test_bundle.py"
import io, json, os, random, struct, sys, zipfile
from pathlib import Path
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from bearcls.inference.bundle import Bundle, sha256, write_bundle
from bearcls.sample.standins import colour_model, furs

strange = [None, True, False, 0, -1, 1, 1.5, 10**9, 2**63, -2**63, 1e308, 10**30, '', 'a', '\0', '../../etc/passwd', 'x'*100_000, [], {}, [[]]*1000, {'a': {}}, [None], ['a']*70_000, [0.5]*3, '\ud800', '🐻'*50,
    {'threshold': 1e29, 'false_positive_rate': 0, 'images': 1}, {str(i): i for i in range(5000)}]

def sound(dest, model=None): return write_bundle(Bundle(list(furs), (64, 64)), colour_model() if model is None else model, dest, '# Furs')

def places(value, path=()):
    "Every place in nested JSON"
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict): yield from places(inner, (*path, key))

def changed_metadata(folder, rng, n=80):
    "One or two fields with other values"
    original = sound(folder/'original')
    for i in range(n):
        metadata = json.loads((original/'bundle.json').read_text())
        for place in rng.sample(list(places(metadata)), rng.choice([1, 1, 2])):
            inner = metadata
            for key in place[:-1]:
                if not isinstance(inner, dict) or key not in inner: break
                inner = inner[key]
            else:
                if isinstance(inner, dict): inner[place[-1]] = rng.choice(strange)
        dest = sound(folder/f'metadata-{i}')
        (dest/'bundle.json').write_text(json.dumps(metadata))
        yield dest

def mangle(content, rng):
    "Some bytes other, gone or more"
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, kind = rng.randrange(max(1, len(content))), rng.random()
        if kind < .6 and content: content[at] = rng.randrange(256)
        elif kind < .75: del content[at:at + rng.choice([1, 4, 1000])]
        elif kind < .9: content[at:at] = rng.randbytes(rng.choice([1, 4, 50]))
        else: del content[at:]
    return bytes(content)

def mangled_metadata(folder, rng, n=40):
    "Bytes of bundle.json"
    for i in range(n):
        dest = sound(folder/f'json-{i}')
        (dest/'bundle.json').write_bytes(mangle((dest/'bundle.json').read_bytes(), rng))
        yield dest

def mangled_models(folder, rng, n=80):
    "Bytes of the model, with a digest that fits"
    for i in range(n): yield sound(folder/f'model-{i}', mangle(colour_model(), rng) or b'x')

def mangled_zips(folder, rng, n=40):
    content = sound(folder/'sound.zip').read_bytes()
    for i in range(n):
        (dest := folder/f'zip-{i}.zip').write_bytes(mangle(content, rng))
        yield dest

def zip_of(dest, entries, **kwargs):
    with zipfile.ZipFile(dest, 'w', **kwargs) as z:
        for name, content in entries: z.writestr(name, content)
    return dest

def tricky_zips(folder):
    "What a zip can be made to do"
    import warnings
    files = {f.name: f.read_bytes() for f in sound(folder/'plain').iterdir()}
    pairs = list(files.items())
    metadata = json.loads(files['bundle.json'])
    metadata['model']['bytes'] = 1 << 30
    large = json.dumps(metadata).encode()
    yield zip_of(folder/'bomb.zip', [('bundle.json', large), ('model.onnx', bytes(300_000_000))], compression=zipfile.ZIP_DEFLATED)
    yield zip_of(folder/'metadata-bomb.zip', [*pairs[:0], ('bundle.json', b' '*200_000_000), ('model.onnx', files['model.onnx'])], compression=zipfile.ZIP_DEFLATED)
    yield zip_of(folder/'out.zip', [('../../' + n, c) for n, c in pairs])
    yield zip_of(folder/'absolute.zip', [('/absolute/' + n, c) for n, c in pairs])
    yield zip_of(folder/'two.zip', [(f'{d}/{n}', c) for d in 'ab' for n, c in pairs])
    yield zip_of(folder/'empty.zip', [])
    yield zip_of(folder/'lzma.zip', pairs, compression=zipfile.ZIP_LZMA)
    yield zip_of(folder/'bz2.zip', pairs, compression=zipfile.ZIP_BZIP2)
    yield zip_of(folder/'many.zip', [*((f'{i}', b'') for i in range(70_000)), *pairs])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield zip_of(folder/'doubled.zip', [*pairs, ('model.onnx', b'another')])
    locked = bytearray(zip_of(folder/'locked.zip', pairs).read_bytes())
    for sign, flag in ((b'PK\1\2', 8), (b'PK\3\4', 6)):
        at = -1
        while (at := locked.find(sign, at + 1)) >= 0: locked[at + flag] |= 1
    (folder/'locked.zip').write_bytes(locked)
    yield folder/'locked.zip'
    plain = zip_of(folder/'claims.zip', pairs).read_bytes()
    at = plain.rfind(b'PK\5\6')
    for name, values in dict(directory=(3, 3, 0xfffffff0, 0), offset=(3, 3, 200, 0xfffffff0), number=(65535, 65535, 200, 10), zip64=(65535, 65535, 0xffffffff, 0xffffffff)).items():
        (dest := folder/f'claims-{name}.zip').write_bytes(plain[:at + 8] + struct.pack('<HHII', *values) + plain[at + 20:])
        yield dest
    grown = bytearray(plain)
    entry = grown.find(b'PK\1\2')
    struct.pack_into('<II', grown, entry + 20, 0xfffffff0, 0xfffffff0)
    (folder/'grown.zip').write_bytes(grown)
    yield folder/'grown.zip'
    (folder/'within.zip').write_bytes(b'MZ' + bytes(500) + plain)
    yield folder/'within.zip'

def links(folder):
    "Files that lead elsewhere or are none"
    for name, target in dict(zero='/dev/zero', host='/etc/hostname', folder='/etc', itself='model.onnx', nothing='/does/not/exist', memory='/proc/self/mem', random='/dev/urandom').items():
        for file in ('model.onnx', 'bundle.json'):
            dest = sound(folder/f'link-{name}-{file}')
            (dest/file).unlink()
            (dest/file).symlink_to(file if name == 'itself' else target)
            yield dest
    dest = sound(folder/'pipe')
    (dest/'model.onnx').unlink()
    os.mkfifo(dest/'model.onnx')
    yield dest

def graph(nodes, weights=None, outputs=None, image=TensorProto.UINT8, **more):
    "A model with the outputs of a bundle; `nodes` in ONNX's text"
    outputs = outputs or dict(logits=['n', 3], probabilities=['n', 3], features=['n', 3])
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    weights = {'mid': np.array([1, 2], np.int64), 'ends': np.array([0, 1], np.int64), **(weights or {})}
    made = [helper.make_node(op, ins.split(), outs.split(), **attributes) for op, ins, outs, attributes in [
        ('Cast', 'image', 'x', dict(to=1)), ('ReduceMean', 'x mid', 'f', dict(keepdims=0)), *nodes]]
    proto = helper.make_model(helper.make_graph(made, 'g', [helper.make_tensor_value_info('image', image, ['n', 64, 64, 3])], declared,
        [numpy_helper.from_array(v, k) for k, v in weights.items()]), opset_imports=[helper.make_opsetid('', 18)], ir_version=8, **more)
    return proto

def answers(source='f'): return [('Identity', source, 'logits', {}), ('Softmax', source, 'probabilities', dict(axis=1)), ('Identity', 'f', 'features', {})]

def graphs(folder):
    "Models that are no classifiers, or more than that"
    whole, one = np.array([60_000, 60_000], np.int64), np.ones((1, 1), np.float32)
    small = ('ReduceMean', 'big', 'b', dict(keepdims=0, noop_with_empty_axes=0))
    huge = {
        'filled': ([('ConstantOfShape', 'shape', 'big', {}), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(shape=whole)),
        'expanded': ([('Expand', 'one shape', 'big', {}), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(shape=whole, one=one)),
        'tiled': ([('Tile', 'one shape', 'big', {}), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(shape=whole, one=one)),
        'ranged': ([('Range', 'a b0 c', 'big0', {}), ('Cast', 'big0', 'big', dict(to=1)), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(a=np.array(0), b0=np.array(2**40), c=np.array(1))),
        'crossed': ([('MatMul', 'up across', 'big', {}), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(up=np.ones((60_000, 1), np.float32), across=np.ones((1, 60_000), np.float32))),
        'spread': ([('Add', 'up across', 'big', {}), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(up=np.ones((60_000, 1), np.float32), across=np.ones((1, 60_000), np.float32))),
        'padded': ([('Pad', 'one pads', 'big', {}), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(one=one, pads=np.array([0, 0, 60_000, 60_000], np.int64))),
        'resized': ([('Resize', 'pic  scales', 'big', {}), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(pic=np.ones((1, 1, 1, 1), np.float32), scales=np.array([1, 1, 6e4, 6e4], np.float32))),
        'onehot': ([('OneHot', 'rows depth pair', 'big', {}), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(rows=np.zeros(60_000, np.int64), depth=np.array(60_000), pair=np.array([0, 1], np.float32))),
        'doubling': ([('Identity', 'one', 'd0', {}), *((('Concat', f'd{i} d{i}', f'd{i + 1}', dict(axis=0)) if i < 33 else ('Identity', f'd{i}', 'big', {})) for i in range(34)), small, ('Add', 'f b', 'g', {}), *answers('g')], dict(one=one)),
    }
    for name, (nodes, weights) in huge.items(): yield sound(folder/f'huge-{name}', graph(nodes, weights).SerializeToString())
    nan, ten = np.array(np.nan, np.float32), np.zeros((3, 4), np.float32)
    lies = {
        'nan': graph([('Mul', 'f nan', 'g', {}), *answers('g')], dict(nan=nan)),
        'infinite': graph([('Div', 'f zero', 'g', {}), *answers('g')], dict(zero=np.array(0, np.float32))),
        'no-probabilities': graph([('Identity', 'f', 'logits', {}), ('Identity', 'f', 'probabilities', {}), ('Identity', 'f', 'features', {})]),
        'four': graph([('MatMul', 'f w', 'g', {}), *answers('g')], dict(w=ten), dict(logits=['n', None], probabilities=['n', None], features=['n', 3])),
        'one-row': graph([('ReduceMean', 'f', 'g', dict(keepdims=0)), ('Softmax', 'g', 'probabilities', dict(axis=0)), ('Identity', 'g', 'logits', {}), ('Identity', 'f', 'features', {})], None, dict(logits=None, probabilities=None, features=['n', 3])),
        'rows': graph([('Concat', 'f f', 'g', dict(axis=0)), *answers('g')], None, dict(logits=['m', 3], probabilities=['m', 3], features=['n', 3])),
        'empty': graph([('Slice', 'f zero zero', 'g', {}), *answers('g')], dict(zero=np.array([0], np.int64)), dict(logits=['m', 3], probabilities=['m', 3], features=['n', 3])),
        'missing': graph([('Identity', 'f', 'logits', {})], None, dict(logits=['n', 3])),
        'float-input': graph(answers(), image=TensorProto.FLOAT),
        'unconnected': graph([('Add', 'f nowhere', 'g', {}), *answers('g')]),
        'circle': graph([('Add', 'f h', 'g', {}), ('Identity', 'g', 'h', {}), *answers('g')]),
        'unknown': graph([('MakeCoffee', 'f', 'g', {}), *answers('g')]),
        'text': graph([('Cast', 'f', 'g', dict(to=TensorProto.STRING)), ('Identity', 'g', 'logits', {}), ('Identity', 'g', 'probabilities', {}), ('Identity', 'f', 'features', {})]),
        'deep': graph([('Identity', 'f', 'i0', {}), *(('Identity', f'i{i}', f'i{i + 1}', {}) for i in range(20_000)), *answers('i20000')]),
    }
    for name, proto in lies.items(): yield sound(folder/f'lie-{name}', proto.SerializeToString())
    sound_graph = graph(answers())
    for name, location in dict(passwd='/etc/passwd', up='../../../../etc/hostname', here='README.md', device='/dev/zero').items():
        proto = graph([('Add', 'f w', 'g', {}), *answers('g')], dict(w=np.ones(3, np.float32)))
        tensor = next(t for t in proto.graph.initializer if t.name == 'w')
        tensor.ClearField('raw_data')
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key='location', value=location)
        yield sound(folder/f'external-{name}', proto.SerializeToString())
    for name, shape in dict(huge=[2**40], negative=[-3], product=[2**20]*4, many=[1]*5000).items():
        proto = graph([('Add', 'f w', 'g', {}), *answers('g')], dict(w=np.ones(3, np.float32)))
        next(t for t in proto.graph.initializer if t.name == 'w').dims[:] = shape
        yield sound(folder/f'shape-{name}', proto.SerializeToString())
    body = helper.make_graph([helper.make_node('Identity', ['go'], ['still'])], 'body', [helper.make_tensor_value_info('i', TensorProto.INT64, []), helper.make_tensor_value_info('go', TensorProto.BOOL, [])],
        [helper.make_tensor_value_info('still', TensorProto.BOOL, [])])
    yield sound(folder/'loop', graph([('Loop', 'limit true', '', dict(body=body)), *answers()], dict(limit=np.array(2**63 - 1), true=np.array(True))).SerializeToString())
    functions = [helper.make_function('', f'F{i}', ['a'], ['b'], [helper.make_node(f'F{i - 1}' if i else 'Identity', ['a'], ['b']) for _ in range(10)], [helper.make_opsetid('', 18)]) for i in range(12)]
    yield sound(folder/'functions', graph([('F11', 'f', 'g', {}), *answers('g')], functions=functions).SerializeToString())
    nested = onnx.GraphProto()
    for _ in range(20):  # graphs within graphs
        outer = onnx.GraphProto()
        node = outer.node.add(op_type='If')
        node.attribute.add(name='then_branch', type=5).g.CopyFrom(nested)
        nested = outer
    proto = graph(answers())
    proto.graph.node.append(nested.node[0])
    yield sound(folder/'nested', proto.SerializeToString())
    yield sound(folder/'tail', sound_graph.SerializeToString() + b'\x3a\x00')
    yield sound(folder/'zeros', bytes(10_000_000))

def all_hostile(folder, seed=0):
    "Folders and zips, some three hundred"
    rng = random.Random(seed)
    for make in (lambda f: changed_metadata(f, rng), lambda f: mangled_metadata(f, rng), lambda f: mangled_models(f, rng), lambda f: mangled_zips(f, rng), tricky_zips, links, graphs):
        inner = Path(folder)/f'{len(list(Path(folder).iterdir()))}'
        inner.mkdir()
        yield from make(inner)

def ask(paths):
    "In a process of its own: what each bundle answers, how long that takes, and how large the process has grown"
    import resource, time
    from PIL import Image
    from bearcls.inference.bundle import BundleError
    from bearcls.inference.classifier import Classifier
    image = Image.new('RGB', (80, 80), furs['brown'])
    for path in paths:
        print(json.dumps(dict(path=path)), flush=True)  # so that it is known which one ended the process
        start = time.perf_counter()
        try: p = Classifier(path, threads=1).predict(image); said = dict(label=p.label, probability=p.probability, probabilities=p.probabilities)
        except BundleError as e: said = dict(refused=str(e))
        except BaseException as e: said = dict(failed=f'{type(e).__name__}: {str(e)[:500]}')
        print(json.dumps(dict(path=path, seconds=time.perf_counter() - start, megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024, **said)), flush=True)

if __name__ == '__main__': ask(Path(sys.argv[1]).read_text().splitlines())
