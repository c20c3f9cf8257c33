"""Jupyter's kernels, forked from one process that has imported the heavy packages of others: what a notebook of the tests imports itself is as new as ever

python tests/warm_kernels.py SOCKET                     the process that waits for orders
python tests/warm_kernels.py SOCKET -f CONNECTION_FILE  what Jupyter starts: it orders a kernel, and lives as long as that does"""
import atexit, functools, json, os, select, signal, socket, subprocess, sys, tempfile, threading, time
from pathlib import Path

packages = 'matplotlib.figure', 'PIL.Image', 'scipy.stats', 'pandas', 'torch', 'torchvision', 'ipykernel.kernelapp'

@functools.cache
def kernel_path() -> str:  # For JUPYTER_PATH; empty where processes cannot be forked
    "A folder with a kernel python3 that is there at once; one process serves all tests of this one"
    if not hasattr(os, 'fork') or sys.platform == 'darwin': return ''
    folder = tempfile.TemporaryDirectory(prefix='kernels')
    place, spec = Path(folder.name)/'orders', Path(folder.name)/'kernels'/'python3'/'kernel.json'
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(dict(argv=[sys.executable, __file__, str(place), '-f', '{connection_file}'], display_name='Python 3', language='python')))
    found = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'PYTHONPATH': found, 'MPLBACKEND': 'module://matplotlib_inline.backend_inline', 'TQDM_DISABLE': '1'}
    process = subprocess.Popen([sys.executable, __file__, place], stdin=subprocess.PIPE, env=environment)
    while not place.exists():
        assert process.poll() is None, 'no process waits for orders'
        time.sleep(.05)
    atexit.register(folder.cleanup)
    atexit.register(process.communicate)  # which closes its standard input
    return folder.name

def take_orders(place):
    "A kernel for each who asks, until the tests have ended"
    for name in packages: __import__(name)  # before anybody can ask: who starts a kernel does not wait for minutes
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place)
        door.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while sys.stdin not in (ready := select.select([door, sys.stdin], [], [])[0]):
            asking, _ = door.accept()
            if not os.fork():
                door.close()
                return become_kernel(asking)
            asking.close()

def become_kernel(asking):
    "Everything as in a process of its own: folder, environment, arguments, files; who asked may end it"
    words, files, *_ = socket.recv_fds(asking, 100_000, 3)
    while not words.endswith(b'\n'): words += asking.recv(100_000)
    order = json.loads(words)
    os.setsid()
    os.chdir(order['folder'])
    for n, file in enumerate(files): os.dup2(file, n)
    os.environ.clear()
    os.environ.update(order['environment'])
    os.environ.pop('JPY_PARENT_PID', None)  # the parent is another one here
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asking.sendall(b'%d\n' % os.getpid())
    def end_together():
        asking.recv(1)
        os._exit(1)
    threading.Thread(target=end_together, daemon=True).start()
    del sys.path[0]  # the folder of this file
    from ipykernel.kernelapp import IPKernelApp
    IPKernelApp.launch_instance(argv=order['arguments'])

def order_kernel(place, arguments):
    "Stand for a kernel: signals are passed on, and both end together; where who started it is gone, too"
    with socket.socket(socket.AF_UNIX) as kernel:
        kernel.connect(place)
        order = dict(folder=os.getcwd(), environment=dict(os.environ), arguments=arguments)
        socket.send_fds(kernel, [json.dumps(order).encode() + b'\n'], [0, 1, 2])
        pid = int(kernel.recv(20))
        for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, lambda n, frame: os.kill(pid, n))
        parent = os.getppid()
        while os.getppid() == parent and not select.select([kernel], [], [], 1)[0]: pass

if __name__ == '__main__':
    if sys.argv[2:]: order_kernel(sys.argv[1], sys.argv[2:])
    else: take_orders(sys.argv[1])
