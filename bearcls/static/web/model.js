// The model in ONNX Runtime, and its word on whether to believe it: the rules of bearcls.inference.prediction.judge

const minLight = 64;  // grey level, as bearcls.images.min_light

export async function loadModel(ort, wasm, model, metadata) {  // a function from what `lookAt` gives to an answer
  Object.assign(ort.env.wasm, { wasmBinary: wasm, numThreads: 1, proxy: false });  // threads would need headers from a server
  ort.env.logLevel = 'fatal';
  const session = await ort.InferenceSession.create(model, { executionProviders: ['wasm'], logSeverityLevel: 4 });
  const { width, height } = metadata.input, wanted = ['probabilities'];
  const evidence = metadata.trust.confidence ? metadata.trust.confidence.evidence : {};
  const score = session.outputNames.includes('unlikeness') ? 'unlikeness' : 'ood_score';  // its name in models of bundles of format 1
  if (metadata.trust.ood_score || 'ood_score' in evidence) wanted.push(score);
  if ('second opinion' in evidence) wanted.push('second_opinion');
  return async ({ pixels, size }) => {
    const out = await session.run({ image: new ort.Tensor('uint8', pixels, [1, height, width, 3]) }, wanted);
    const values = Array.from(out.probabilities.data), far = out[score] ? out[score].data[0] : null;
    const overlaps = out.second_opinion ? Array.from(out.second_opinion.data) : null;
    const sum = values.reduce((a, b) => a + b, 0);
    if (values.length !== metadata.labels.length || !(Math.abs(sum - 1) < 0.01) || !(Math.min(...values) >= 0) || !Number.isFinite(far ?? 0))
      throw new Error('The model gives no probabilities for this image.');
    return answer(metadata, values, size, lightness(pixels), far, overlaps);
  };
}

export function answer(metadata, values, size, light, ood_score, overlaps = null) {  // as bearcls.inference.prediction.Prediction
  const ranked = values.map((p, i) => [metadata.labels[i], p]).sort((a, b) => b[1] - a[1]);
  const sure = metadata.trust.confidence ? lookAtAnswer(metadata.trust.confidence, values, light, ood_score, overlaps) : null;
  const reason = judge(metadata, ranked, size, light, ood_score, sure);
  return {
    label: ranked[0][0], probability: ranked[0][1], probabilities: Object.fromEntries(ranked), order: ranked.map((r) => r[0]), ood_score,
    trusted: !reason, reason, confidence: sure && sure.value,
  };
}

export function lookAtAnswer(fitted, values, light, ood_score, overlaps) {  // as bearcls.inference.prediction.look_at
  const best = values.indexOf(Math.max(...values)), p = Math.min(Math.max(values[best], 1e-6), 1 - 1e-6);
  const evidence = { probability: Math.log(p) - Math.log1p(-p), lightness: light / 255 };
  if (ood_score !== null) evidence.ood_score = Math.min(Math.max(ood_score, -1), 6);
  if (overlaps) {
    const fit = overlaps.map((v) => Math.log(Math.max(v, 1e-6)));
    evidence['second opinion'] = fit[best] - Math.max(...fit.filter((v, i) => i !== best));
  }
  const said = Object.entries(fitted.evidence).map(([name, [mean, spread, weight]]) => [name, weight * (evidence[name] - mean) / spread]);
  const total = said.reduce((sum, [, v]) => sum + v, fitted.bias), [doubt, least] = said.reduce((a, b) => (b[1] < a[1] ? b : a));
  const preferred = overlaps ? overlaps.indexOf(Math.max(...overlaps)) : best;
  return { value: Number.isNaN(total) ? 0 : 1 / (1 + Math.exp(-total)), doubt: least < -0.25 ? doubt : '', other: preferred === best ? null : preferred };
}

export function lightness(pixels) {  // the grey level that 95% of the pixels stay under
  const counts = new Uint32Array(256);
  for (let i = 0; i < pixels.length; i += 3) counts[pixels[i] * 19595 + pixels[i + 1] * 38470 + pixels[i + 2] * 7471 + 0x8000 >> 16]++;
  let level = 0;
  for (let below = counts[0]; below < .95 * pixels.length / 3; below += counts[++level]);
  return level;
}

export function judge({ trust, labels }, ranked, size, light, ood_score, sure = null) {  // why a person should look; empty if nobody has to
  if (Math.min(...size) < trust.smallest) return `the image is only ${size[0]} by ${size[1]} pixels`;
  if (light < minLight) return `the image is too dark: 95% of it is at ${light} of 255 or darker`;
  if (ood_score !== null && trust.ood_score && !(ood_score <= trust.ood_score.threshold))
    return `it is unlike the images that the model was trained on (${two(ood_score)}, where up to ${two(trust.ood_score.threshold)} is usual)`;
  const [[first, p], [second, q]] = ranked;
  if ((sure ? sure.value : p) >= trust.threshold) return '';
  return (sure && doubtWords(labels, first, p, sure)) || `it could be ${first} (${two(p)}) or ${second} (${two(q)})`;
}

function doubtWords(labels, first, p, { value, doubt, other }) {  // as bearcls.inference.prediction._doubt_words
  const often = `such answers are right in ${Math.floor(100 * value)} of 100 cases`;
  if (doubt === 'second opinion' && other !== null) return `it looks like ${first} (${two(p)}), and on a second look like ${labels[other]}; ${often}`;
  const words = { 'second opinion': 'a second look is not clear', lightness: 'the image is rather dark', ood_score: 'it is somewhat unlike the images that the model was trained on' };
  return words[doubt] ? `${words[doubt]}; ${often}` : '';
}

function two(value) { return (Math.abs(value * 8 % 4) === 1 ? value - Math.sign(value) * 1e-9 : value).toFixed(2); }  // halves to even, as Python
