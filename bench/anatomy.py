"""Where the time goes: one cold start, one warm answer and one request of the service, each part beside the least that it can take

python bench/anatomy.py --out anatomy.json [--rounds 7] [--work FOLDER]

Model and images are those of bench/inference.py. Times are the shortest of the rounds, in milliseconds of the clock; on a machine that does other work, look at `processor`, the same in seconds of the processor.

start     a fresh process with compiled modules, from nothing to the first answer about an image of 640×480: Python itself, then NumPy, Pillow and ONNX Runtime, which nobody can do without; bearcls; the bundle read and checked; the model
          loaded; the first answer. `bare` is the least: a script with these three packages, ONNX Runtime's defaults and no check at all
answer    where everything is loaded and warm: `decode` beside libjpeg alone at the same scale, `shape` beside Pillow's resize, `model` beside ONNX Runtime alone on the same pixels with the best number of threads, `rest` for everything else:
          light, thresholds, the answer itself. For images of 640×480, of 12 megapixels as on the web, and from a camera
request   one request at a time over a kept connection, beside the same answer in the process: what HTTP, its form and the threads between them take
int8      the model in 8 bits beside the model as it is: its time, the largest difference of a probability and changed labels, on the photographs; it would become the standard with no changed label and at most 0.01"""
import os, resource, subprocess, sys, time
from common import arguments, save, working_folder
from inference import prepare, root

start = dict(python='', packages='import numpy\nfrom PIL import Image\nimport onnxruntime',
    bearcls='import onnxruntime\nfrom bearcls.inference.classifier import Classifier',
    bundle='import onnxruntime\nfrom bearcls.inference.classifier import Classifier\nfrom bearcls.inference.bundle import model_bytes, read_bundle\nmodel_bytes(read_bundle("bundle"))',
    model='from bearcls.inference.classifier import Classifier\nmodel = Classifier("bundle")',
    answer='from bearcls.inference.classifier import Classifier\nmodel = Classifier("bundle")\nmodel.predict("vga.jpg")',
    bare='''
import numpy as np
from PIL import Image
import onnxruntime
session = onnxruntime.InferenceSession('bundle/model.onnx')
image = Image.open('vga.jpg', formats=['JPEG']).convert('RGB').resize((224, 224), Image.Resampling.BILINEAR)
session.run(None, {'image': np.asarray(image)[None]})
''')

def run(code, work):
    "Seconds of the clock and of the processor that a fresh process takes"
    env = {**os.environ, 'PYTHONPATH': str(root), 'PYTHONWARNINGS': 'ignore'}
    for name in ('PYTHONDONTWRITEBYTECODE', 'OMP_NUM_THREADS'): env.pop(name, None)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, '-c', code], cwd=work, env=env, check=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

def start_parts(work, rounds):
    "What each step adds to a cold start"
    for code in start.values(): run(code, work)  # modules are compiled
    times = {name: [] for name in start}
    for _ in range(rounds):
        for name, code in start.items(): times[name].append(run(code, work))
    least = {name: [min(column) for column in zip(*rows)] for name, rows in times.items()}
    steps = [name for name in start if name != 'bare']
    parts = {'python': least['python']}
    for last, name in zip(steps, steps[1:]): parts[name] = [b - a for a, b in zip(least[last], least[name])]
    return dict(milliseconds={name: 1e3*v[0] for name, v in parts.items()}, processor={name: 1e3*v[1] for name, v in parts.items()},
        whole=1e3*least['answer'][0], bare=1e3*least['bare'][0], processor_whole=1e3*least['answer'][1], processor_bare=1e3*least['bare'][1])

def shortest(functions, rounds):
    "The shortest time of each function in milliseconds, in turn"
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: 1e3*min(v) for name, v in times.items()}

def answer_parts(work, rounds):
    "Parts of a warm answer, each beside its bound"
    import io
    import numpy as np
    from PIL import Image
    from bearcls.core import usable_cores
    from bearcls.images import load_image
    from bearcls.inference import bundle as bundles
    from bearcls.inference.classifier import Classifier
    models = {n: Classifier(work/'bundle', threads=n) for n in range(1, usable_cores() + 1)}
    model = models[usable_cores()]
    b = model.bundle
    found = {}
    for name in ('vga', '12mp', 'camera'):
        file, data = work/f'{name}.jpg', (work/f'{name}.jpg').read_bytes()
        image, (_, pixels) = load_image(file, b.min_side), model._open(file)
        def libjpeg():
            opened = Image.open(io.BytesIO(data), formats=['JPEG'])
            if b.min_side: opened.draft('RGB', (b.min_side, b.min_side))
            opened.load()
        functions = dict(decode=lambda: load_image(file, b.min_side), decode_bound=libjpeg, shape=lambda: np.asarray(bundles.prepare(image, b.size, b.method, b.pad_mode)),
            shape_bound=lambda: image.resize(b.size, Image.Resampling.BILINEAR), model=lambda: model.run(pixels[None]), whole=lambda: model.predict(file))
        functions |= {f'model_{n}': lambda m=m: m.session.run(m.outputs, {'image': pixels[None]}) for n, m in models.items()}
        times = shortest(functions, 20*rounds)
        by_threads = {n: times.pop(f'model_{n}') for n in models}
        times['model_bound'], times['rest'] = min(by_threads.values()), times['whole'] - times['decode'] - times['shape'] - times['model']
        found[name] = times | dict(model_by_threads=by_threads)
    return found

def request_parts(work, rounds):
    "One request at a time, beside the answer in this process"
    import http.client
    from serve import Side
    from bearcls.inference.classifier import Classifier
    model, data = Classifier(work/'bundle'), (work/'vga.jpg').read_bytes()
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + data + b'\r\n--x--\r\n'
    with Side('bearcls', work, 1) as side:
        connection = http.client.HTTPConnection('127.0.0.1', side.port)
        def ask():
            connection.request('POST', '/predict', body, {'Content-Type': 'multipart/form-data; boundary=x'})
            answer = connection.getresponse()
            if answer.read() and answer.status != 200: sys.exit(f'The service answers {answer.status}')
        return shortest(dict(request=ask, answer=lambda: model.predict(data)), 20*rounds)

def int8(work, path, rounds):
    "What 8 bits cost and save"
    import numpy as np
    import onnxruntime
    from bearcls.export.variants import quantize
    from bearcls.folders import image_files
    from bearcls.inference.bundle import model_bytes
    from bearcls.inference.classifier import Classifier
    model = Classifier(work/'bundle')
    pixels = [model._open(file)[1][None] for file in image_files(path)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = model.threads
    small = onnxruntime.InferenceSession(quantize(model_bytes(model.bundle), pixels[::4]), options)
    before = np.concatenate([model.run(p)['probabilities'] for p in pixels])
    after = np.concatenate([small.run(['probabilities'], {'image': p})[0] for p in pixels])
    times = shortest(dict(whole=lambda: model.session.run(model.outputs, {'image': pixels[0]}), int8=lambda: small.run(model.outputs, {'image': pixels[0]})), 20*rounds)
    return times | dict(largest_difference=float(abs(after - before).max()), labels_changed=int((after.argmax(1) != before.argmax(1)).sum()), images=len(pixels))

def main():
    parser = arguments(__doc__, keeps='model and images')
    parser.add_argument('--rounds', type=int, default=7, help='times that each start is measured; answers are measured 20 times as often')
    args = parser.parse_args()
    with working_folder(args.work) as work:
        path, real = prepare(work, 4)
        result = dict(real=real, start=start_parts(work, args.rounds), answer=answer_parts(work, args.rounds), request=request_parts(work, args.rounds), int8=int8(work, path, args.rounds))
    save(result, args.out)

if __name__ == '__main__': main()
