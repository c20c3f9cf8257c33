"A bundle made by hand: its model finds the nearest of some colours. Needs `onnx`, and no torch"
import numpy as np
import onnx.parser
from bearcls.inference import Bundle, write_bundle

furs = dict(black=(45, 42, 40), brown=(140, 100, 60), white=(225, 222, 215))

def colour_model(colours, size=64, sharpness=60):
    "The ONNX model, as bytes"
    centres = np.array(list(colours), dtype=float)/255
    def numbers(a): return '{' + ', '.join(f'{v:.8g}' for v in a.ravel()) + '}'
    n = len(centres)
    return onnx.parser.parse_model(f'''<ir_version: 8, opset_import: ["" : 17]>
colours (uint8[n,{size},{size},3] image) => (float[n,{n}] logits, float[n,{n}] probabilities, float[n,3] features)
<float[{n},3] w = {numbers(2*sharpness*centres)}, float[{n}] b = {numbers(-sharpness*(centres**2).sum(1))}, float full = {{255}}>
{{ x = Cast<to=1>(image)
  y = Div(x, full)
  features = ReduceMean<axes=[1,2], keepdims=0>(y)
  logits = Gemm<transB=1>(features, w, b)
  probabilities = Softmax<axis=1>(logits) }}''').SerializeToString()

def make_bundle(dest, **facts):
    "Write the bundle of three fur colours"
    return write_bundle(Bundle(list(furs), (64, 64), **facts), colour_model(furs.values()), dest, '# Fur colours\n')
