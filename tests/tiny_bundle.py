"A bundle made by hand: its model finds the nearest of some colours. Needs `onnx`, and no torch"
from bearcls.inference.bundle import Bundle, write_bundle
from bearcls.sample.standins import colour_model, furs

def make_bundle(dest, labels=tuple(furs), model=None, **metadata):
    "Write the bundle of three fur colours"
    return write_bundle(Bundle(list(labels), (64, 64), **metadata), model or colour_model(), dest, '# Fur colours\n')
