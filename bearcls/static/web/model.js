// The model in ONNX Runtime, and its word on whether to believe it: the rules of bearcls.inference.judge

const minLight = 64;  // grey level, as bearcls.inference.min_light

export async function loadModel(ort, wasm, model, facts) {  // a function from what `lookAt` gives to an answer
  Object.assign(ort.env.wasm, { wasmBinary: wasm, numThreads: 1, proxy: false });  // threads would need headers from a server
  ort.env.logLevel = 'fatal';
  const session = await ort.InferenceSession.create(model, { executionProviders: ['wasm'], logSeverityLevel: 4 });
  const { width, height } = facts.input, wanted = ['probabilities', ...(facts.trust.unlikeness ? ['unlikeness'] : [])];
  return async ({ pixels, size }) => {
    const out = await session.run({ image: new ort.Tensor('uint8', pixels, [1, height, width, 3]) }, wanted);
    const values = Array.from(out.probabilities.data), far = out.unlikeness ? out.unlikeness.data[0] : null;
    const sum = values.reduce((a, b) => a + b, 0);
    if (values.length !== facts.labels.length || !(Math.abs(sum - 1) < 0.01) || !(Math.min(...values) >= 0) || !Number.isFinite(far ?? 0))
      throw new Error('The model gives no probabilities for this picture.');
    return answer(facts, values, size, lightness(pixels), far);
  };
}

export function answer(facts, values, size, light, unlikeness) {  // as bearcls.inference.Prediction
  const ranked = values.map((p, i) => [facts.labels[i], p]).sort((a, b) => b[1] - a[1]), reason = judge(facts, ranked, size, light, unlikeness);
  return { label: ranked[0][0], probability: ranked[0][1], probabilities: Object.fromEntries(ranked), order: ranked.map((r) => r[0]), unlikeness, trusted: !reason, reason };
}

export function lightness(pixels) {  // the grey level that 95% of the pixels stay under
  const counts = new Uint32Array(256);
  for (let i = 0; i < pixels.length; i += 3) counts[pixels[i] * 19595 + pixels[i + 1] * 38470 + pixels[i + 2] * 7471 + 0x8000 >> 16]++;
  let level = 0;
  for (let below = counts[0]; below < .95 * pixels.length / 3; below += counts[++level]);
  return level;
}

export function judge({ trust }, ranked, size, light, unlikeness) {  // why a person should look; empty if nobody has to
  if (Math.min(...size) < trust.smallest) return `the picture is only ${size[0]} by ${size[1]} pixels`;
  if (light < minLight) return `the picture is too dark: 95% of it is at ${light} of 255 or darker`;
  if (unlikeness !== null && trust.unlikeness && !(unlikeness <= trust.unlikeness.threshold))
    return `it is unlike the pictures that the model was trained on (${two(unlikeness)}, where up to ${two(trust.unlikeness.threshold)} is usual)`;
  const [[first, p], [second, q]] = ranked;
  return p >= trust.threshold ? '' : `it could be ${first} (${two(p)}) or ${second} (${two(q)})`;
}

function two(value) { return (Math.abs(value * 8 % 4) === 1 ? value - Math.sign(value) * 1e-9 : value).toFixed(2); }  // halves to even, as Python
