// The page: images that are chosen here are answered here. In the single file everything stands in the page itself, in the folder it lies beside it
import { mount } from './classify.js';
import { ImageError } from './files.js';
import { lookAt } from './pixels.js';
import { loadModel } from './model.js';

const root = document.querySelector('main'), state = document.querySelector('#state'), inside = document.querySelector('#bearcls-metadata');
const say = (words, name) => { state.textContent = words; document.documentElement.dataset.state = name; };

async function parts() {
  if (!inside) return { ...await beside(), runtime: await import('./ort.wasm.bundle.min.mjs') };
  const [wasm, model] = await Promise.all(['wasm', 'model'].map((name) => unpacked(bytesOf(document.querySelector(`#bearcls-${name}`)))));
  return { metadata: JSON.parse(inside.textContent), runtime: globalThis.bearclsRuntime, wasm, model };
}

async function beside() {
  const get = async (name) => {
    const answer = await fetch(new URL(name, import.meta.url)).catch(() => null);
    if (!answer?.ok) throw new Error(`A part of this page could not be loaded (${name}). Are you connected?`);
    return new Uint8Array(await answer.arrayBuffer());
  };
  const [metadata, wasm, model] = await Promise.all(['bundle.json', 'ort-wasm-simd-threaded.wasm.packed', 'model.onnx'].map(get));
  return { metadata: JSON.parse(new TextDecoder().decode(metadata)), wasm: await unpacked(wasm), model };
}

function bytesOf(element) {
  const letters = element.textContent;
  element.remove();
  return Uint8Array.fromBase64?.(letters) ?? Uint8Array.from(atob(letters), (c) => c.charCodeAt(0));
}

async function unpacked(bytes) {  // some servers unpack on the way
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer());
}

async function start() {
  if (!globalThis.WebAssembly || !globalThis.DecompressionStream) throw new Error('This browser is too old for this page. A version of 2023 or later can do it.');
  const { metadata, runtime, wasm, model } = await parts();
  if (globalThis.crypto?.subtle) {
    const digest = [...new Uint8Array(await crypto.subtle.digest('SHA-256', model))].map((v) => v.toString(16).padStart(2, '0')).join('');
    if (digest !== metadata.model.sha256) throw new Error('The model did not come complete. Load the page again.');
  }
  return { metadata, model: await loadModel(runtime, wasm, model, metadata) };
}

const loading = start();
async function open(item) {  // the page brings one image after another: a photograph needs 50 MB while it is open
  const { metadata } = await loading, name = item.file.name || 'The image';
  if (item.signal.aborted) return {};
  try { return item.seen = await lookAt(item.file, metadata.input); } catch (error) {
    if (error instanceof ImageError) throw new Error(`${name} cannot be looked at: ${error.message}.`);
    console.error(error);
    throw new Error(`${name} cannot be looked at. It may be too large for the memory of this device.`);
  }
}

let turn = Promise.resolve();
function ask({ name, seen }) {  // one after another
  return turn = turn.catch(() => null).then(async () => {
    const answer = await (await loading).model(seen);
    root.dispatchEvent(new CustomEvent('bearcls:answer', { detail: { name, ...answer } }));  // for whoever builds on this page
    return answer;
  });
}

mount(root, { title: document.title, open, ask, shrink: false, heading: 'h1',
  note: 'Your images stay on this device: the model came to you with this page, and nothing is sent anywhere.' });

say('The model is being made ready …', 'loading');
loading.then(() => say(inside ? 'Ready. This page works without a network.' : 'Ready.', 'ready'), (error) => say(error.message, 'failed'));
if (!inside && 'serviceWorker' in navigator) {
  navigator.serviceWorker.register('./sw.js').then(() => navigator.serviceWorker.ready).then(() => loading)
    .then(() => say('Ready. From now on this page also works without a network.', 'offline')).catch(() => null);
}
